"""What the rules that choose single entries by their scores refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sensitune.allocation import Allocation, layerwise_allocation, neuron_allocation
from sensitune.errors import ArgumentError, BudgetError, NonFiniteError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline

Make = Callable[..., ModelOutline]
Scores = Callable[..., Sensitivity]
Allocate = Callable[..., Allocation]


@pytest.mark.parametrize("rule", [layerwise_allocation, neuron_allocation])
@pytest.mark.parametrize(
    ("score", "error", "sentence"),
    [
        (-1.0, ArgumentError, r"Scores must not be negative. Got -1.0 in `blocks.0.matrix`"),
        (float("nan"), NonFiniteError, r"A score of `blocks.0.matrix` is not a finite number"),
    ],
)
def test_impossible_scores_are_refused(
    make_outline: Make, make_scores: Scores, rule: Allocate, score: float, error: type[Exception], sentence: str
) -> None:
    sensitivity = make_scores(make_outline([(3, 5)]))
    sensitivity.scores["blocks.0.matrix"][1, 2] = score
    with pytest.raises(error, match=sentence):
        rule(sensitivity, budget=5)


@pytest.mark.parametrize("rule", [layerwise_allocation, neuron_allocation])
@pytest.mark.parametrize("budget", [2, "few"])
def test_impossible_budgets_are_refused(make_outline: Make, make_scores: Scores, rule: Allocate, budget: Any) -> None:
    with pytest.raises(BudgetError, match="`budget` must be"):
        rule(make_scores(make_outline([(3, 5)], token=3)), budget=budget)
