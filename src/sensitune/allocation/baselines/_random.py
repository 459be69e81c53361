"""The rule of the paper with random scores."""

from __future__ import annotations

import torch

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import read_budget
from sensitune.allocation._cost import Rules, StructuredType
from sensitune.allocation._problem import Problem
from sensitune.allocation._solve import solve_budgets
from sensitune.sites import ModelOutline


def random_allocation(
    outline: ModelOutline,
    *,
    budget: int | str,
    structured: StructuredType | None = "lora",
    rank: int = 8,
    alpha: float = 10.0,
    beta: float = 5.0,
    whole_vectors: bool = True,
    seed: int = 0,
) -> Allocation:
    """What the same rules choose when every scalar has a uniformly random score.

    The cost equals the budget exactly, so the difference to `allocate` is the information in the scores alone. Random
    scores spread evenly, so few sites reach their threshold and most is sparse; ``structured=None,
    whole_vectors=False`` is purely sparse, and `random_structured_allocation` places whole modules.

    Args:
        outline: The model.
        budget: As in `allocate`.
        structured: As in `allocate`.
        rank: As in `allocate`.
        alpha: As in `allocate`.
        beta: As in `allocate`.
        whole_vectors: As in `allocate`.
        seed: Seed of the scores, recorded in the metadata.

    Returns:
        The allocation, with ``rule="random"``.

    Raises:
        BudgetError: If the budget cannot be spent; see `allocate`.
    """
    generator = torch.Generator().manual_seed(seed)
    problem = Problem(
        outline=outline,
        # 1 - [0, 1): a score of zero would never be selected.
        views=tuple(1 - torch.rand(site.shape, generator=generator) for site in outline.sites),
        rules=Rules(structured, rank, alpha, beta, whole_vectors),
        metadata={"criterion": "random", "seed": seed},
        rule="random",
    )
    return solve_budgets(problem, [read_budget(budget, outline)])[0]
