"""What a run's method would place at other budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sensitune.allocation import Allocation, allocate, check_budget, matrices_alone
from sensitune.errors import BudgetError
from sensitune.runs._run import Run
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline

_REACH = 8


def budget_ladder(run: Run, *, steps: int = 40) -> list[Allocation]:
    """Place at budgets from an eighth of the run's to eight times it, by the run's own method and scores.

    Args:
        run: A run; nothing is computed but placements.
        steps: How many budgets, at most 12 where each needs a search of its own; those that the method cannot use are
            left out.

    Returns:
        The allocations by growing cost, the run's own among them; that alone if the method follows no scores, or the
        scores are not there; none if it places nothing.
    """
    own = run.allocation()
    if own is None:
        return []
    return sorted([own, *_others(run, own, steps)], key=lambda each: each.trainable_params)


def _others(run: Run, own: Allocation, steps: int) -> list[Allocation]:
    method, settings, sensitivity = run.config.method, run.config.allocation, run.known_sensitivity()
    if sensitivity is None or not method.follows_scores or not own.trainable_params:
        return []
    if own.rule == "spt":
        rule: dict[str, Any] = {
            "structured": own.structured_type,
            "rank": settings.rank,
            "alpha": settings.alpha,
            "beta": settings.beta,
            "whole_vectors": own.structured_type is not None,
        }
        ranked = matrices_alone(sensitivity.outline) if settings.servable else sensitivity.outline
        wanted = [budget for budget in _budgets(own, steps) if _fits(ranked, budget, rule)]
        while wanted:
            try:  # one ranking for all of them
                return list(allocate(sensitivity, budget=wanted, servable=settings.servable, **rule))
            except BudgetError:  # scores of zero leave less to tune than there is room for
                wanted.pop()
        return []
    return list(_one_by_one(run, sensitivity, _budgets(own, min(steps, 12))))


def _budgets(own: Allocation, steps: int) -> list[int]:
    params = own.trainable_params
    return sorted({round(params * _REACH ** (2 * step / (steps - 1) - 1)) for step in range(steps)} - {params})


def _fits(outline: ModelOutline, budget: int, rule: dict[str, Any]) -> bool:
    try:
        check_budget(outline, budget=budget, tau=None, **rule)
    except BudgetError:
        return False
    return True


def _one_by_one(run: Run, sensitivity: Sensitivity, budgets: list[int]) -> Iterator[Allocation]:
    settings = run.config.allocation
    for budget in budgets:
        asked = replace(settings, budget=budget, tau=None)
        try:
            found = run.config.method.allocate(asked, sensitivity.outline, sensitivity, seed=run.config.seed)
        except BudgetError:  # below what is always trained, or above what there is to tune
            continue
        if found is not None:
            yield found
