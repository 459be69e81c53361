"""The authors' published allocations load exactly, and nothing in such a file is ever executed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import timm
import torch
from newer import without_values

from sensitune.allocation import load_published_allocation
from sensitune.errors import AdapterFileError, AllocationMismatchError
from sensitune.sites import ModelOutline, outline_model

PUBLISHED = Path(__file__).parents[1] / "golden" / "published"


def outline_of(name: str, **options: int) -> ModelOutline:
    """Only names and shapes are needed."""
    return outline_model(without_values(lambda: timm.create_model(name, num_classes=100, **options)))


@pytest.fixture(scope="module")
def vit_b16() -> ModelOutline:
    return outline_of("vit_base_patch16_224")


@pytest.mark.parametrize(
    ("name", "params", "structured", "vectors", "sparse"),
    [("cifar_lora_0.4.pth", 380_909, 14, 69, 23_789), ("cifar_adapter_0.1.pth", 89_561, 2, 53, 21_961)],
)
def test_a_published_file_trains_the_number_of_parameters_it_states(
    vit_b16: ModelOutline, name: str, params: int, structured: int, vectors: int, sparse: int
) -> None:
    allocation = load_published_allocation(PUBLISHED / name, vit_b16)
    assert allocation.trainable_params == params
    assert (len(allocation.structured), len(allocation.vectors), allocation.sparse_params) == (
        structured,
        vectors,
        sparse,
    )
    assert allocation.structured_type == name.split("_")[1]


def test_the_example_of_the_design_is_found_where_it_says(vit_b16: ModelOutline) -> None:
    indices = load_published_allocation(PUBLISHED / "cifar_lora_0.4.pth", vit_b16).sparse["blocks.5.mlp.fc2.weight"]
    rows, columns = indices // 3072, indices % 3072
    assert (len(indices), len(rows.unique()), len(columns.unique())) == (3012, 766, 12)


def test_another_model_is_refused(vit_b16: ModelOutline) -> None:
    shallow, narrow = outline_of("vit_base_patch16_224", depth=3), outline_of("vit_small_patch16_224")
    with pytest.raises(AllocationMismatchError, match=r"names `blocks\.\d+\.\S+`, which this model does not have"):
        load_published_allocation(PUBLISHED / "cifar_lora_0.4.pth", shallow)
    with pytest.raises(AllocationMismatchError, match=r"of 589,824 scalars, but this model's has 147,456"):
        load_published_allocation(PUBLISHED / "cifar_lora_0.4.pth", narrow)


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trap-was-sprung",)


def test_a_hostile_pickle_is_refused_and_does_not_run(vit_b16: ModelOutline, tmp_path: Path) -> None:
    torch.save({"params": _Trap()}, tmp_path / "cifar_lora_0.4.pth")
    with pytest.raises(AdapterFileError, match="Nothing from it was executed"):
        load_published_allocation(tmp_path / "cifar_lora_0.4.pth", vit_b16)
    assert not Path("trap-was-sprung").exists()


def test_a_file_of_something_else_or_a_truncated_one_is_refused(vit_b16: ModelOutline, tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(AdapterFileError, match="is not a published allocation: it lacks params"):
        load_published_allocation(tmp_path / "other.pth", vit_b16)
    whole = (PUBLISHED / "cifar_lora_0.4.pth").read_bytes()
    (tmp_path / "cut_lora.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterFileError, match="cannot be read as a published allocation: it is truncated"):
        load_published_allocation(tmp_path / "cut_lora.pth", vit_b16)
