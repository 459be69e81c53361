"""A `Sensitivity` survives the disk and refuses scores that do not fit its sites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_sites import make_site
from safetensors.torch import save_file
from tensor_files import rewrite, seal

from sensitune.errors import AdapterFileError, AllocationMismatchError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline


@pytest.fixture
def sensitivity() -> Sensitivity:
    sites = (
        make_site("qkv.weight[q]", (2, 3), parameter="qkv.weight", rows=(0, 2), block=0, operation="q"),
        make_site("qkv.weight[v]", (2, 3), parameter="qkv.weight", rows=(4, 6), block=0, operation="v"),
        make_site("norm.weight", (3,), operation="norm"),
    )
    scores = {"qkv.weight": torch.rand(6, 3), "norm.weight": torch.rand(3, dtype=torch.bfloat16)}
    outline = ModelOutline(sites, ("head",), 9, {"cls_token": (1, 1, 3)}, {"pos_embed": "position embedding"}, 30)
    return Sensitivity(scores, outline, {"criterion": "squared_gradient", "batch_sizes": [4, 4]})


def test_the_score_of_a_slice_is_a_view_of_its_rows(sensitivity: Sensitivity) -> None:
    score = sensitivity.score_of(sensitivity.sites[1])
    assert torch.equal(score, sensitivity.scores["qkv.weight"][4:6])
    assert score.data_ptr() == sensitivity.scores["qkv.weight"][4:].data_ptr()


def test_saving_and_loading_gives_the_same_sensitivity(sensitivity: Sensitivity, tmp_path: Path) -> None:
    sensitivity.save(tmp_path / "run" / "sensitivity.safetensors")
    loaded = Sensitivity.load(tmp_path / "run" / "sensitivity.safetensors")
    assert (loaded.outline, loaded.metadata) == (sensitivity.outline, sensitivity.metadata)
    assert loaded.scores.keys() == sensitivity.scores.keys()
    for name, score in sensitivity.scores.items():
        assert torch.equal(loaded.scores[name], score)
        assert loaded.scores[name].dtype == score.dtype


def test_lazy_loading_gives_the_same_scores_one_at_a_time(sensitivity: Sensitivity, tmp_path: Path) -> None:
    sensitivity.save(tmp_path / "sensitivity.safetensors")
    lazy = Sensitivity.load(tmp_path / "sensitivity.safetensors", lazy=True)
    assert (lazy.outline, lazy.metadata) == (sensitivity.outline, sensitivity.metadata)
    assert sorted(lazy.scores) == sorted(sensitivity.scores)
    assert len(lazy.scores) == len(sensitivity.scores)
    for name, score in sensitivity.scores.items():
        assert torch.equal(lazy.scores[name], score)
    first = lazy.scores["qkv.weight"]
    assert lazy.scores["qkv.weight"].data_ptr() != first.data_ptr()  # nothing is held on to
    assert "head.weight" not in lazy.scores


def test_a_lazy_sensitivity_can_be_saved_again(sensitivity: Sensitivity, tmp_path: Path) -> None:
    sensitivity.save(tmp_path / "first.safetensors")
    Sensitivity.load(tmp_path / "first.safetensors", lazy=True).save(tmp_path / "second.safetensors")
    again = Sensitivity.load(tmp_path / "second.safetensors")
    assert all(torch.equal(again.scores[name], score) for name, score in sensitivity.scores.items())


def test_a_lazy_sensitivity_whose_file_is_gone_says_so(sensitivity: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.safetensors"
    sensitivity.save(path)
    lazy = Sensitivity.load(path, lazy=True)
    path.unlink()
    with pytest.raises(AdapterFileError, match=r"The tensor `norm.weight` can no longer be read from .* in place"):
        lazy.scores["norm.weight"]


@pytest.mark.parametrize("lazy", [False, True])
def test_a_truncated_file_is_refused(sensitivity: Sensitivity, tmp_path: Path, lazy: bool) -> None:
    path = tmp_path / "sensitivity.safetensors"
    sensitivity.save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterFileError, match=r"sensitivity.safetensors` is damaged and cannot be read"):
        Sensitivity.load(path, lazy=lazy)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("replacement", "sentence"),
    [
        (None, "is incomplete: it lacks the tensor `qkv.weight`"),
        (
            torch.rand(5, 3),
            r"The score of `qkv.weight` has shape \(5, 3\); site `qkv.weight\[v\]` needs \(2, 3\) at rows",
        ),
        (torch.rand(6, 4), r"The score of `qkv.weight` has shape \(6, 4\); site `qkv.weight\[q\]` needs \(2, 3\)"),
        (-torch.rand(6, 3), "the tensor `qkv.weight` holds a negative score"),
        (torch.full((6, 3), torch.nan), "the tensor `qkv.weight` holds a value that is not finite"),
        (torch.full((6, 3), torch.inf), "the tensor `qkv.weight` holds a value that is not finite"),
        (torch.ones(6, 3, dtype=torch.int32), "the tensor `qkv.weight` must hold floating-point numbers, not int32"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(
    sensitivity: Sensitivity, tmp_path: Path, replacement: torch.Tensor | None, sentence: str, lazy: bool
) -> None:
    path = tmp_path / "sensitivity.safetensors"
    sensitivity.save(path)

    def change(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
        del tensors["qkv.weight"]
        if replacement is not None:
            tensors["qkv.weight"] = replacement

    rewrite(path, change)
    with pytest.raises(AdapterFileError, match=sentence):
        Sensitivity.load(path, lazy=lazy)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_score_that_is_not_what_was_written_is_noticed(sensitivity: Sensitivity, tmp_path: Path, lazy: bool) -> None:
    path = tmp_path / "sensitivity.safetensors"
    sensitivity.save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the last byte of the last tensor
    path.write_bytes(content)
    with pytest.raises(AdapterFileError, match=r"sensitivity.safetensors` is damaged: the tensor `.*` is not what was"):
        Sensitivity.load(path, lazy=lazy)


def test_a_header_that_lacks_a_part_is_refused(sensitivity: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.safetensors"
    save_file({}, path, metadata=seal(json.dumps({"kind": "sensitivity", "tensors": {}})))
    with pytest.raises(AdapterFileError, match="is damaged: The setting `outline` is missing"):
        Sensitivity.load(path)


def test_a_header_that_is_not_what_was_written_is_noticed(sensitivity: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.safetensors"
    sensitivity.save(path)
    rewrite(path, lambda _, header: header["metadata"].update(criterion="other"), sealed=False)
    with pytest.raises(AdapterFileError, match="is damaged: its header is not what was written"):
        Sensitivity.load(path)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "allocation.safetensors"
    save_file({}, path, metadata=seal(json.dumps({"kind": "allocation", "tensors": {}})))
    with pytest.raises(AdapterFileError, match="is no Sensitune sensitivity file: its kind is 'allocation'"):
        Sensitivity.load(path)


def test_scores_must_cover_every_site(sensitivity: Sensitivity) -> None:
    with pytest.raises(AllocationMismatchError, match="The scores lack `norm.weight`, which site `norm.weight` needs"):
        Sensitivity({"qkv.weight": torch.rand(6, 3)}, sensitivity.outline, {})
