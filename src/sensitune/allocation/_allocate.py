"""Turn a sensitivity into an allocation: by tau, by a budget, or by several budgets at once."""

from __future__ import annotations

from typing import overload

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import Budgets, read_budgets
from sensitune.allocation._cost import Rules, StructuredType
from sensitune.allocation._matrices import servable_part
from sensitune.allocation._problem import Problem, SiteScores, origin_of
from sensitune.allocation._solve import solve_budgets, solve_tau
from sensitune.errors import ArgumentError
from sensitune.sensitivity import Sensitivity


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
    servable: bool = False,
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
    servable: bool = False,
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
    servable: bool = False,
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
        servable: True = nothing is selected but what plain LoRA can say (`sensitune.export_lora`): LoRAs and single
            values of matrices, no vectors, no tokens. Values in many columns and rows make a LoRA of a high rank.

    Returns:
        The allocation, or one per budget in the order given.

    Raises:
        ArgumentError: If both or neither of `budget` and `tau` are given, or an option is out of range.
        ModelError: If only matrices are wanted (`servable`) and there is none.
        BudgetError: If a budget is below what is always trained, above what can be used, or cannot be read.
        NonFiniteError: If a score is not finite.

    Source:
        He et al., ICCV 2023 (arXiv 2303.08566), section 3.3, for the rule at a given tau. The walk is ours: the
        published code tries 79 fixed taus and keeps the one whose cost is nearest to the budget.
    """
    if (budget is None) == (tau is None):
        raise ArgumentError(f"Give exactly one of `budget` and `tau`. Got {'neither' if tau is None else 'both'}.")
    if servable:
        sensitivity = servable_part(sensitivity, structured)
    problem = Problem(
        outline=sensitivity.outline,
        views=SiteScores(sensitivity),
        rules=Rules(structured, rank, alpha, beta, whole_vectors),
        metadata=origin_of(sensitivity),
    )
    if tau is not None:
        return solve_tau(problem, tau)
    assert budget is not None
    allocations = solve_budgets(problem, read_budgets(budget, problem.outline))
    return allocations if isinstance(budget, (list, tuple)) else allocations[0]
