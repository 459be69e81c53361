"""Baselines in the same type: one module everywhere, or a random choice under the same rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sensitune.allocation._allocate import Problem, solve_budgets
from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import parse_budget
from sensitune.allocation._cost import Rules, StructuredType, check_module
from sensitune.errors import ArgumentError
from sensitune.sites import ModelOutline, Site


def uniform_allocation(
    outline: ModelOutline,
    *,
    structured: StructuredType | None = "lora",
    rank: int = 8,
    operations: Sequence[str] | None = None,
    vectors: bool = False,
    train_tokens: bool = True,
) -> Allocation:
    """The same module on the same operations in every block; no scores needed.

    ``structured=None, vectors=True`` tunes all biases, norms and scales; ``structured=None, train_tokens=False`` trains
    the head alone.

    Args:
        outline: The model.
        structured: The module of every chosen matrix; None = none.
        rank: Its rank.
        operations: Which matrices by operation, for example ``("q", "v")``; None = every matrix.
        vectors: True = every vector is tuned whole.
        train_tokens: False = the class token and its kin stay frozen.

    Returns:
        The allocation, with ``method="uniform"``.

    Raises:
        ArgumentError: If an operation matches no matrix, or is given without `structured`.
    """
    check_module(structured, rank)
    if operations is not None and structured is None:
        raise ArgumentError(f"`operations` chooses where modules go, so it needs `structured`. Got {operations!r}.")
    matrices = _matrices(outline, operations) if structured else []
    return Allocation(
        outline=outline,
        structured=tuple(site.id for site in matrices),
        vectors=tuple(site.id for site in outline.sites if vectors and site.kind == "vector"),
        sparse={},
        rank=rank,
        structured_type=structured,
        method="uniform",
        always_trained=tuple(outline.always_trained) if train_tokens else (),
    )


def _matrices(outline: ModelOutline, operations: Sequence[str] | None) -> list[Site]:
    matrices = [site for site in outline.sites if site.kind == "matrix"]
    known = list(dict.fromkeys(site.operation for site in matrices))
    for operation in operations or ():
        if operation not in known:
            raise ArgumentError(
                f"`operations` has '{operation}', which no matrix does. Choose from {', '.join(known)}."
            )
    return [site for site in matrices if operations is None or site.operation in operations]


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

    The cost equals the budget exactly, so the difference to `allocate` is the information in the scores alone.

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
        The allocation, with ``method="random"``.

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
        method="random",
    )
    return solve_budgets(problem, [parse_budget(budget, outline.backbone_params)])[0]
