"""Turn a sensitivity into an allocation: by tau, by a budget, or by several budgets at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np
import torch

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import parse_budget
from sensitune.allocation._cost import Rules, StructuredType
from sensitune.allocation._cut import Indices, find_cut, indices_above
from sensitune.allocation._ranking import Ranking, rank_candidates, ranking_floor, ranks_of
from sensitune.allocation._walk import Walk, usable_params, walk
from sensitune.errors import ArgumentError, BudgetError, NonFiniteError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline, Site

Budgets: TypeAlias = list[int] | list[str] | list[int | str] | tuple[int | str, ...]

_ORIGIN = ("criterion", "num_batches", "num_samples", "model", "score_dtype", "seed", "versions")


@overload
def allocate(
    sensitivity: Sensitivity,
    *,
    budget: int | str | None = None,
    tau: int | None = None,
    structured: StructuredType | None = "lora",
    rank: int = 8,
    alpha: float = 10.0,
    beta: float = 5.0,
    whole_vectors: bool = True,
) -> Allocation: ...


@overload
def allocate(
    sensitivity: Sensitivity,
    *,
    budget: Budgets,
    tau: None = None,
    structured: StructuredType | None = "lora",
    rank: int = 8,
    alpha: float = 10.0,
    beta: float = 5.0,
    whole_vectors: bool = True,
) -> list[Allocation]: ...


def allocate(
    sensitivity: Sensitivity,
    *,
    budget: int | str | Budgets | None = None,
    tau: int | None = None,
    structured: StructuredType | None = "lora",
    rank: int = 8,
    alpha: float = 10.0,
    beta: float = 5.0,
    whole_vectors: bool = True,
) -> Allocation | list[Allocation]:
    """Choose what to tune: modules where many scalars matter, single scalars elsewhere.

    By `tau`: the tau most sensitive scalars are selected; a matrix with c ≥ P / alpha of them gets a module of P
    parameters, a vector of size n with c ≥ n / beta is tuned whole, the rest is sparse. By `budget`: the ranking is
    walked down until the cost equals the budget exactly; a site that reaches its threshold when what is left does not
    pay for the switch stays sparse for good. Ties go by site order, then by lower index; a score of zero is never
    selected.

    Args:
        sensitivity: The scores.
        budget: Trainable parameters allowed, the class token counted, the head not: a number, ``"0.4M"``, ``"400k"`` or
            ``"0.5%"`` of the backbone. A list shares one selection and returns a list.
        tau: Number of scalars to select, instead of a budget.
        structured: What a matrix gets when many of its scalars matter; None = nothing, matrices stay sparse.
        rank: Rank of the modules.
        alpha: A matrix is structured from P / alpha selected scalars on; at least 1. 10 as published.
        beta: A vector of size n is tuned whole from n / beta selected scalars on; at least 1. 5 as published.
        whole_vectors: False = vectors stay sparse. With ``structured=None`` the allocation is purely sparse.

    Returns:
        The allocation, or one per budget in the order given.

    Raises:
        ArgumentError: If both or neither of `budget` and `tau` are given, or an option is out of range.
        BudgetError: If a budget is below what is always trained, above what can be used, or cannot be read.
        NonFiniteError: If a score is not finite.

    Source:
        He et al., ICCV 2023 (arXiv 2303.08566), section 3.3, for the rule at a given tau. The walk is ours: the
        published code tries 79 fixed taus and keeps the one whose cost is nearest to the budget.
    """
    if (budget is None) == (tau is None):
        raise ArgumentError(f"Give exactly one of `budget` and `tau`. Got {'neither' if tau is None else 'both'}.")
    problem = Problem(
        outline=sensitivity.outline,
        views=SiteScores(sensitivity),
        rules=Rules(structured, rank, alpha, beta, whole_vectors),
        metadata=origin_of(sensitivity),
    )
    if tau is not None:
        return solve_tau(problem, tau)
    if isinstance(budget, (list, tuple)):
        return solve_budgets(problem, [parse_budget(one, problem.outline.backbone_params) for one in budget])
    assert budget is not None
    return solve_budgets(problem, [parse_budget(budget, problem.outline.backbone_params)])[0]


def origin_of(sensitivity: Sensitivity) -> dict[str, Any]:
    """What an allocation passes on of where its sensitivity comes from."""
    return {name: sensitivity.metadata[name] for name in _ORIGIN if name in sensitivity.metadata}


def sparse_allocation(
    sensitivity: Sensitivity, sparse: Mapping[str, torch.Tensor], *, budget: int, rule: str, **recorded: Any
) -> Allocation:
    """Single scalars alone, as another rule than `allocate`'s chose them.

    Args:
        sensitivity: What they were ranked by.
        sparse: Site id -> sorted flat indices.
        budget: What they were to cost.
        rule: Its name.
        **recorded: What the metadata says besides where the scores come from.

    Returns:
        The allocation; the class token and its kin are trained too.
    """
    return Allocation(
        outline=sensitivity.outline,
        structured={},
        vectors=(),
        sparse=sparse,
        budget=budget,
        rule=rule,
        always_trained=tuple(sensitivity.outline.always_trained),
        metadata=origin_of(sensitivity) | recorded,
    )


class SiteScores(Sequence[torch.Tensor]):
    """The scores of each ranked site, of its shape, taken up one at a time: they may lie in a file on the disk."""

    def __init__(self, sensitivity: Sensitivity) -> None:
        self._sensitivity = sensitivity

    def __len__(self) -> int:
        return len(self._sensitivity.sites)

    @overload
    def __getitem__(self, number: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[torch.Tensor]: ...
    def __getitem__(self, number: int | slice) -> torch.Tensor | Sequence[torch.Tensor]:
        if isinstance(number, slice):
            return [self._sensitivity.score_of(site) for site in self._sensitivity.sites[number]]
        return self._sensitivity.score_of(self._sensitivity.sites[number])


@dataclass(frozen=True, eq=False)
class Problem:
    """Scores to allocate by, and the rules.

    Attributes:
        outline: The model.
        views: The scores of each ranked site, of its shape.
        rules: What switches, when, and for how much.
        metadata: Passed on to the allocation.
        rule: Passed on to the allocation.
    """

    outline: ModelOutline
    views: Sequence[torch.Tensor]
    rules: Rules
    metadata: Mapping[str, Any]
    rule: str = "spt"

    def checked_views(self) -> Iterator[torch.Tensor]:
        """The views, each checked when its turn comes, so that a check costs no reading of its own.

        Yields:
            The scores of each ranked site.

        Raises:
            ArgumentError: If a score is negative.
            NonFiniteError: If a score is not finite.
        """
        for site, view in zip(self.outline.sites, self.views, strict=True):
            check_scores(site, view)
            yield view


def solve_tau(problem: Problem, tau: int) -> Allocation:
    """The allocation at a fixed tau; see `allocate`."""
    _check_tau(problem, tau)
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
    check_minimum(problem.outline, budgets)
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
    if budget > usable:
        raise _too_large(budget, usable, problem.rules)
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


def check_scores(site: Site, view: torch.Tensor) -> None:
    """Refuse scores that are negative or not finite."""
    low, high = (bound.item() for bound in torch.aminmax(view))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise NonFiniteError(f"A score of `{site.id}` is not a finite number. Estimate the sensitivity again.")
    if low < 0:
        raise ArgumentError(f"Scores must not be negative. Got {low} in `{site.id}`.")


def _check_tau(problem: Problem, tau: int) -> None:
    most = sum(site.numel for site in problem.outline.sites)
    if not 1 <= tau <= most:
        raise ArgumentError(f"`tau` must lie between 1 and the {most:,} scalars that are ranked. Got {tau:,}.")


def check_minimum(outline: ModelOutline, budgets: Sequence[int]) -> None:
    """Refuse a budget below what is always trained, and an empty list of budgets."""
    if not budgets:
        raise BudgetError("`budget` must hold at least one budget. Got an empty list.")
    always = outline.always_trained_params
    least = f"{always:,} parameters ({_always_reason(outline)})" if always else "1 parameter"
    for budget in budgets:
        if budget < max(always, 1):
            raise BudgetError(f"`budget` must be at least {least}. Got {budget:,}.")


def _always_reason(outline: ModelOutline) -> str:
    names = [name.rpartition(".")[2] for name in outline.always_trained]
    if names == ["cls_token"]:
        return "the class token is always trained"
    return f"{', '.join(names)} {'are' if len(names) > 1 else 'is'} always trained"


def _too_large(budget: int, usable: int, rules: Rules) -> BudgetError:
    if rules.structured is None:
        return BudgetError(f"`budget` {budget:,} exceeds what sparse tuning can use ({usable:,}). Lower `budget`.")
    return BudgetError(
        f"`budget` {budget:,} exceeds what rank {rules.rank} can use ({usable:,}). Raise `rank` or lower `budget`."
    )
