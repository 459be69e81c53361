"""The scores of each half of the batches, which a pass keeps on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sensitune.errors import AllocationMismatchError, ArgumentError, DataError
from sensitune.sensitivity import CriterionName, Sensitivity, estimate_sensitivity

Batches = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.fixture
def batches() -> Batches:
    return [(torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))) for _ in range(5)]


@pytest.mark.parametrize(
    "criterion",
    ["squared_gradient", "weight_gradient", "absolute_gradient_sum"],
)
@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 2}, {"keep_gradients": True}])
def test_they_are_what_each_half_alone_gives(
    model: nn.Module, batches: Batches, criterion: CriterionName, options: dict[str, Any]
) -> None:
    found = estimate_sensitivity(model, batches, criterion=criterion, keep_halves=True, **options)
    for half, own in zip(found.of_halves(), (batches[::2], batches[1::2]), strict=True):
        alone = estimate_sensitivity(model, own, criterion=criterion)
        assert (half.outline, half.gradients, half.halves) == (found.outline, None, None)
        for name, score in alone.scores.items():
            assert half.scores[name].dtype == torch.bfloat16
            torch.testing.assert_close(half.scores[name].float(), score, rtol=1e-2, atol=1e-6 * score.max().item())


def test_keeping_them_changes_neither_scores_nor_gradients(model: nn.Module, batches: Batches) -> None:
    without = estimate_sensitivity(model, batches, keep_gradients=True)
    found = estimate_sensitivity(model, batches, keep_gradients=True, keep_halves=True)
    assert without.gradients is not None
    assert found.gradients is not None
    for name, score in without.scores.items():
        assert torch.equal(found.scores[name], score)
        assert torch.equal(found.gradients[name], without.gradients[name])


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("keep_gradients", [False, True])
def test_the_file_keeps_them(
    model: nn.Module, batches: Batches, lazy: bool, keep_gradients: bool, tmp_path: Path
) -> None:
    found = estimate_sensitivity(model, batches, keep_halves=True, keep_gradients=keep_gradients)
    found.save(tmp_path / "s.safetensors")
    loaded = Sensitivity.load(tmp_path / "s.safetensors", lazy=lazy)
    assert loaded.scores.keys() == found.scores.keys()
    assert (loaded.gradients is None) is not keep_gradients
    for half, expected in zip(loaded.of_halves(), found.of_halves(), strict=True):
        assert all(torch.equal(half.scores[name], score) for name, score in expected.scores.items())


def test_without_them_the_way_to_them_is_said(model: nn.Module, batches: Batches, tmp_path: Path) -> None:
    estimate_sensitivity(model, batches).save(tmp_path / "s.safetensors")
    with pytest.raises(
        ArgumentError, match=r"no scores of half the batches. .*`estimate_sensitivity\(..., keep_halves"
    ):
        Sensitivity.load(tmp_path / "s.safetensors").of_halves()


def test_one_batch_has_no_two_halves(model: nn.Module, batches: Batches) -> None:
    with pytest.raises(DataError, match=r"`keep_halves` divides the batches and needs at least 2\. Got 1\."):
        estimate_sensitivity(model, batches[:1], keep_halves=True)
    assert estimate_sensitivity(model, batches[:2], keep_halves=True).halves is not None


def test_a_criterion_that_reads_no_data_has_none(model: nn.Module, batches: Batches) -> None:
    with pytest.raises(ArgumentError, match="`keep_halves` needs a criterion that reads the data; 'magnitude' looks"):
        estimate_sensitivity(model, batches, criterion="magnitude", keep_halves=True)


def test_halves_of_another_shape_are_refused(model: nn.Module, batches: Batches) -> None:
    found = estimate_sensitivity(model, batches, keep_halves=True)
    with pytest.raises(AllocationMismatchError, match="The half scores lack `0.weight`"):
        Sensitivity(found.scores, found.outline, {}, None, (found.scores, {}))
