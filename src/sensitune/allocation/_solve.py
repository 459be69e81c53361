"""The rule of the paper: at a given tau, and under a budget by a walk down the ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import check_maximum
from sensitune.allocation._cost import Rules
from sensitune.allocation._cut import Indices, find_cut, indices_above
from sensitune.allocation._problem import Problem
from sensitune.allocation._ranking import Ranking, rank_candidates, ranking_floor, ranks_of
from sensitune.allocation._walk import Walk, usable_params, walk
from sensitune.errors import ArgumentError, BudgetError
from sensitune.sites import ModelOutline


def solve_tau(problem: Problem, tau: int) -> Allocation:
    """The allocation at a fixed tau; see `allocate`."""
    check_tau(problem.outline, tau)
    switched, sparse, selected = set(), {}, 0
    cut = find_cut(problem.checked_views(), tau)
    for number, (indices, _) in enumerate(indices_above(problem.views, cut)):
        selected += indices.size
        site = problem.outline.sites[number]
        if problem.rules.switched_params(site) is not None and indices.size >= problem.rules.threshold(site):
            switched.add(number)
        elif indices.size:
            sparse[number] = indices
    if not selected:
        raise ArgumentError("Every score is zero, so nothing can be selected. Estimate the sensitivity on other data.")
    return _build(problem, switched, sparse, tau=selected, budget=None)


def solve_budgets(problem: Problem, budgets: Sequence[int]) -> list[Allocation]:
    """The allocations of several budgets, from one ranking; see `allocate`."""
    always = problem.outline.always_trained_params
    sites, rules = problem.outline.sites, problem.rules
    most = max(max(budgets) - always, 1)
    floor = ranking_floor(sites, problem.checked_views(), rules, most)
    ranking = rank_candidates(sites, problem.views, rules, most, floor)
    usable = always + usable_params(sites, rules, ranking)
    ends = [_spend(problem, ranking, budget, usable) for budget in budgets]
    taus = iter(ranks_of(problem.views, ranking, [end.stop - 1 for end in ends if end.stop]))
    return [
        _build(
            problem,
            set(np.flatnonzero(~end.is_sparse).tolist()),
            _sparse_entries(ranking, end),
            tau=next(taus) if end.stop else 0,
            budget=budget,
        )
        for budget, end in zip(budgets, ends, strict=True)
    ]


def _spend(problem: Problem, ranking: Ranking, budget: int, usable: int) -> Walk:
    check_usable(problem.rules, budget, usable)
    end = walk(problem.outline.sites, problem.rules, ranking, budget - problem.outline.always_trained_params)
    if end.left:
        raise BudgetError(
            f"`budget` {budget:,} cannot be spent exactly: {end.left:,} are left when all that can be tuned is "
            f"tuned, and pay for no further module. Choose another budget, such as {usable:,}."
        )
    return end


def _sparse_entries(ranking: Ranking, end: Walk) -> dict[int, Indices]:
    """Site number -> sorted flat indices of the walked candidates whose site is still sparse."""
    site, index = ranking.site[: end.stop], ranking.index[: end.stop]
    kept = end.is_sparse[site]
    order = np.lexsort((index[kept], site[kept]))
    numbers, starts = np.unique(site[kept][order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(index[kept][order], starts[1:]), strict=True)) if numbers.size else {}


def _build(
    problem: Problem, switched: set[int], sparse: Mapping[int, Indices], *, tau: int, budget: int | None
) -> Allocation:
    sites, rules = problem.outline.sites, problem.rules
    whole = [sites[number] for number in sorted(switched)]
    return Allocation(
        outline=problem.outline,
        structured={site.id: rules.rank for site in whole if site.kind == "matrix"},
        vectors=tuple(site.id for site in whole if site.kind == "vector"),
        sparse={sites[number].id: torch.from_numpy(indices) for number, indices in sorted(sparse.items())},
        structured_type=rules.structured,
        tau=tau,
        budget=budget,
        alpha=rules.alpha,
        beta=rules.beta,
        rule=problem.rule,
        always_trained=tuple(problem.outline.always_trained),
        metadata=dict(problem.metadata),
    )


def check_usable(rules: Rules, budget: int, usable: int) -> None:
    """Refuse a budget above what can be used under the rules."""
    if rules.structured is None:
        check_maximum(budget, usable, "sparse tuning")
    else:
        check_maximum(budget, usable, f"rank {rules.rank}", way_out="Raise `rank` or lower `budget`.")


def check_tau(outline: ModelOutline, tau: int) -> None:
    """Refuse to select nothing, or more than is ranked."""
    most = sum(site.numel for site in outline.sites)
    if not 1 <= tau <= most:
        raise ArgumentError(f"`tau` must lie between 1 and the {most:,} scalars that are ranked. Got {tau:,}.")
