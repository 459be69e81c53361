"""An `Allocation` adds up, survives the disk, and refuses what cannot be true."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensor_files import rewrite

from sensitune.allocation import Allocation, SiteRow, module_params
from sensitune.errors import AdapterFileError, ArgumentError
from sensitune.sites import ModelOutline

Make = Callable[..., ModelOutline]


@pytest.fixture
def allocation(make_outline: Make) -> Allocation:
    """Structured 2·(5 + 7) = 24, whole 6, sparse 2 + 1, class token 4."""
    return Allocation(
        outline=make_outline([(5, 7), (6,), (3, 3), (2, 2, 2), (4,)], token=4),
        structured={"blocks.0.matrix": 2},
        vectors=("blocks.1.vector",),
        sparse={"blocks.2.matrix": torch.tensor([0, 8]), "blocks.3.tensor": torch.tensor([7])},
        structured_type="lora",
        tau=12,
        budget=37,
        alpha=10.0,
        beta=5.0,
        always_trained=("cls_token",),
        metadata={"criterion": "squared_gradient"},
    )


def test_the_parts_add_up_to_the_trainable_parameters(allocation: Allocation) -> None:
    parts = (allocation.structured_params, allocation.vector_params, allocation.sparse_params)
    assert parts == (24, 6, 3)
    assert allocation.always_trained_params == 4
    assert allocation.trainable_params == 37
    assert (allocation.num_sites, allocation.head, allocation.head_params) == (4, ("head",), 30)


def test_the_rows_of_the_table_add_up_to_the_trainable_parameters(allocation: Allocation) -> None:
    rows = allocation.table()
    assert sum(row.params for row in rows) == allocation.trainable_params
    assert [row.tuning for row in rows] == ["always", "structured", "vector", "sparse", "sparse", "frozen"]
    assert rows[0] == SiteRow("cls_token", None, "cls_token", "tensor", "always", params=4, size=4)
    assert rows[1] == SiteRow("blocks.0.matrix", 0, "matrix", "matrix", "structured", params=24, size=35)


def test_the_summary_shows_each_operation_and_both_totals(allocation: Allocation) -> None:
    lines = allocation.summary().splitlines()
    assert lines[0] == "spt allocation: LoRA of rank 2, budget 37, tau 12"
    assert lines[2].split() == [
        "operation",
        "sites",
        "structured",
        "whole",
        "vectors",
        "sparse",
        "entries",
        "parameters",
    ]
    assert [line.split() for line in lines if line.startswith(("matrix", "total"))] == [
        ["matrix", "2", "1", "·", "2", "26"],
        ["total", "6", "1", "1", "3", "37"],
    ]
    assert lines[-1] == (
        "Trainable parameters: 37 without the head (22.29% of the backbone), 67 with it (head: head, 30)."
    )


@pytest.mark.parametrize(("structured", "expected"), [("lora", 2 * (5 + 7)), ("adapter", 2 * 2 * 5 + 2 + 5), (None, 0)])
def test_the_size_of_a_module_is_that_of_the_paper(make_outline: Make, structured: Any, expected: int) -> None:
    assert module_params(make_outline([(5, 7)]).sites[0], structured, 2) == expected


def as_dict(allocation: Allocation) -> dict[str, Any]:
    values = {field.name: getattr(allocation, field.name) for field in dataclasses.fields(allocation)}
    return values | {"sparse": {name: (indices.dtype, indices.tolist()) for name, indices in allocation.sparse.items()}}


def test_saving_and_loading_gives_the_same_allocation(allocation: Allocation, tmp_path: Path) -> None:
    allocation.save(tmp_path / "new" / "allocation.safetensors")
    loaded = Allocation.load(tmp_path / "new" / "allocation.safetensors")
    assert as_dict(loaded) == as_dict(allocation)


@pytest.fixture
def ranked(allocation: Allocation) -> Allocation:
    """The same with a second module of a rank of its own: 3·(3 + 3) = 18 instead of 2 sparse entries."""
    return dataclasses.replace(
        allocation,
        structured={"blocks.2.matrix": 3, "blocks.0.matrix": 2},
        sparse={"blocks.3.tensor": torch.tensor([7])},
    )


def test_equal_allocations_are_equal_bytes(allocation: Allocation, tmp_path: Path) -> None:
    files = [
        tmp_path / f"{number}.safetensors" for number in range(8)
    ]  # an order drawn anew would differ in one of them
    for path in files:
        allocation.save(path)
    assert len({path.read_bytes() for path in files}) == 1


def test_each_module_may_have_a_rank_of_its_own(ranked: Allocation) -> None:
    assert list(ranked.structured.items()) == [("blocks.0.matrix", 2), ("blocks.2.matrix", 3)]  # the sites' order
    assert (ranked.structured_params, ranked.trainable_params) == (24 + 18, 37 - 2 + 18)
    assert [row.params for row in ranked.table()] == [4, 24, 6, 18, 1, 0]
    assert ranked.summary().startswith("spt allocation: LoRA of ranks 2 to 3, budget 37")


def test_ranks_survive_the_disk(ranked: Allocation, tmp_path: Path) -> None:
    ranked.save(tmp_path / "a.safetensors")
    assert as_dict(Allocation.load(tmp_path / "a.safetensors")) == as_dict(ranked)


def test_an_allocation_without_sparse_entries_can_be_saved(allocation: Allocation, tmp_path: Path) -> None:
    dataclasses.replace(allocation, sparse={}).save(tmp_path / "a.safetensors")
    assert Allocation.load(tmp_path / "a.safetensors").sparse == {}


def test_indices_take_four_bytes_on_disk(allocation: Allocation, tmp_path: Path) -> None:
    allocation.save(tmp_path / "a.safetensors")
    assert {indices.dtype for indices in load_file(tmp_path / "a.safetensors").values()} == {torch.int32}


def drop_a_tensor(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    del tensors["blocks.3.tensor"]


def exceed_the_site(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    tensors["blocks.3.tensor"] = torch.tensor([8], dtype=torch.int32)


def add_an_unknown_site(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    tensors["blocks.9.matrix"] = torch.tensor([0], dtype=torch.int32)


def structure_a_vector(_: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    header["structured"] = {"blocks.1.vector": 2}


def misplace_a_shape(_: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    header["outline"]["sites"][1]["shape"] = 6


def list_the_modules(_: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    header["structured"] = ["blocks.0.matrix"]


def forget_the_rule(_: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    del header["rule"]


def store_fractions(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    tensors["blocks.3.tensor"] = torch.tensor([0.0, 1.0])


def repeat_an_index(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    tensors["blocks.3.tensor"] = torch.tensor([1, 1], dtype=torch.int32)


def reverse_the_rows(_: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    header["outline"]["sites"][0]["rows"] = [3, 1]


def count_below_zero(_: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    header["outline"]["head_params"] = -1


def claim_a_rank(_: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    header["structured"] = {"blocks.0.matrix": 10**9}


def add_a_setting(_: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    header["ranks"] = 3


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (drop_a_tensor, "is incomplete: it lacks the tensor `blocks.3.tensor`"),
        (exceed_the_site, "is damaged: Index 8 of `blocks.3.tensor` lies outside its 8 scalars"),
        (add_an_unknown_site, "is damaged: `blocks.9.matrix` is not one of the 5 sites that the model ranks"),
        (structure_a_vector, "is damaged: `blocks.1.vector` is a vector; only a matrix can be structured"),
        (misplace_a_shape, r"is damaged: `outline.sites\[1\].shape` must be a list. Got 6"),
        (list_the_modules, "is damaged: `structured` must be"),
        (forget_the_rule, "is damaged: The setting `rule` is missing"),
        (store_fractions, "the tensor `blocks.3.tensor` must hold 32- or 64-bit indices, not float32"),
        (repeat_an_index, "is damaged: The indices of `blocks.3.tensor` must be sorted and without repetition"),
        (
            reverse_the_rows,
            r"is damaged: `outline.sites\[0\].rows` must be a start and a stop behind it, or null. Got \[3, 1\]",
        ),
        (count_below_zero, "is damaged: `outline.head_params` must be a whole number of at least 0. Got -1"),
        (claim_a_rank, "is damaged: The rank 1,000,000,000 of `blocks.0.matrix` is above both sides of every matrix"),
        (add_a_setting, "is damaged: `ranks` is not a setting"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(
    allocation: Allocation, tmp_path: Path, damage: Callable[..., None], sentence: str
) -> None:
    path = tmp_path / "allocation.safetensors"
    allocation.save(path)
    rewrite(path, damage)
    with pytest.raises(AdapterFileError, match=sentence):
        Allocation.load(path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(allocation: Allocation, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "allocation.safetensors"
    allocation.save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(AdapterFileError, match=r"allocation.safetensors` is damaged and cannot be read"):
        Allocation.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(AdapterFileError, match="is no Sensitune allocation file: it comes from elsewhere"):
        Allocation.load(tmp_path / "model.safetensors")


def test_a_failed_save_leaves_nothing_behind(
    allocation: Allocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sensitune._tensor_file.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        allocation.save(tmp_path / "allocation.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"structured": {"nowhere": 1}}, "`nowhere` is not one of the 5 sites"),
        ({"vectors": ("blocks.2.matrix",)}, "`blocks.2.matrix` is a matrix; only a vector can be tuned whole"),
        ({"structured_type": None}, "`structured_type` must be 'lora' or 'adapter' when sites are structured"),
        ({"sparse": {"blocks.1.vector": torch.tensor([1])}}, "`blocks.1.vector` is tuned twice"),
        ({"sparse": {"blocks.4.vector": torch.tensor([-1])}}, "Index -1 of `blocks.4.vector` lies outside"),
        ({"sparse": {"blocks.4.vector": torch.tensor([2, 1])}}, "must be sorted and without repetition"),
        ({"sparse": {"blocks.4.vector": torch.tensor([1, 1])}}, "must be sorted and without repetition"),
        ({"sparse": {"blocks.4.vector": torch.tensor([0.5])}}, "must be a non-empty 1-D int64 tensor"),
        ({"sparse": {"blocks.4.vector": torch.empty(0, dtype=torch.int64)}}, "must be a non-empty 1-D int64 tensor"),
        (
            {"structured": {"blocks.0.matrix": 0}},
            "The rank of `blocks.0.matrix` must be a whole number of at least 1. G",
        ),
        ({"structured": {"blocks.0.matrix": 1.5}}, "The rank of `blocks.0.matrix` must be a whole number"),
        ({"always_trained": ("mask_token",)}, "`mask_token` is not a parameter that the model always trains"),
    ],
)
def test_an_allocation_that_contradicts_its_model_is_refused(
    allocation: Allocation, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        dataclasses.replace(allocation, **change)
