"""What of a placement each half of the batches alone would have chosen too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sensitune.allocation import Allocation, allocate, placement_stability
from sensitune.errors import ArgumentError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline

Scores = dict[str, torch.Tensor]


def made(outline: ModelOutline, whole: list[float], first: list[float], second: list[float]) -> Sensitivity:
    """Sites that score the same everywhere: as given by all batches and by either half."""

    def scores(values: list[float]) -> Scores:
        return {
            site.parameter: torch.full(site.shape, value) for site, value in zip(outline.sites, values, strict=True)
        }

    return Sensitivity(scores(whole), outline, {}, None, (scores(first), scores(second)))


def two_modules(sensitivity: Sensitivity) -> Allocation:
    return allocate(sensitivity, tau=32, rank=1)


def test_modules_stay_that_either_half_places_too(make_outline: Callable[..., ModelOutline]) -> None:
    outline = make_outline([(4, 4)] * 4)
    found = made(outline, [4, 3, 2, 1], [4, 1, 3, 2], [4, 3, 2, 1])
    stability = placement_stability(found, two_modules)
    assert (stability.modules, stability.modules_kept) == (2, 1)
    assert str(stability) == "1 of 2 modules stay under resampling"
    assert list(stability.by_site.values()) == [1.0, 0.5]


def test_halves_that_agree_keep_everything(make_outline: Callable[..., ModelOutline]) -> None:
    found = made(make_outline([(4, 4)] * 4), [4, 3, 2, 1], [8, 6, 4, 2], [4, 3, 2, 1])
    assert str(placement_stability(found, two_modules)) == "2 of 2 modules stay under resampling"


def test_without_modules_the_values_are_counted_one_by_one(make_outline: Callable[..., ModelOutline]) -> None:
    outline = make_outline([(4, 4), (5,)])
    matrix, vector = outline.sites

    def scores(chosen: list[int]) -> Scores:
        of_matrix = torch.zeros(16)
        of_matrix[chosen] = 1
        return {matrix.parameter: of_matrix.view(4, 4), vector.parameter: torch.ones(5)}

    found = Sensitivity(scores([0, 3, 5, 9]), outline, {}, None, (scores([0, 3, 5, 1]), scores([0, 9, 5, 15])))
    stability = placement_stability(found, lambda sensitivity: allocate(sensitivity, tau=9, structured=None))
    assert (stability.values, stability.values_kept) == (9, 5 + 2)  # the vector whole; 0 and 5 by both halves
    assert str(stability) == "7 of 9 values stay under resampling"
    assert stability.by_site == {matrix.id: (3 / 4 + 3 / 4) / 2, vector.id: 1.0}


def test_scores_without_halves_are_refused(make_outline: Callable[..., ModelOutline]) -> None:
    outline = make_outline([(4, 4)])
    found = Sensitivity({outline.sites[0].parameter: torch.ones(4, 4)}, outline, {})
    with pytest.raises(ArgumentError, match="holds no scores of half the batches"):
        placement_stability(found, two_modules)
