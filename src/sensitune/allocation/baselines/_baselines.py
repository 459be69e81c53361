"""Baselines in the same type: one module everywhere, or a random choice, under the same rules or of whole modules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sensitune.allocation._allocate import Problem, check_minimum, solve_budgets
from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import parse_budget
from sensitune.allocation._cost import Rules, StructuredType, check_module, module_params
from sensitune.errors import ArgumentError, BudgetError
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
        The allocation, with ``rule="uniform"``.

    Raises:
        ArgumentError: If an operation matches no matrix, or is given without `structured`.
    """
    check_module(structured, rank)
    if operations is not None and structured is None:
        raise ArgumentError(f"`operations` chooses where modules go, so it needs `structured`. Got {operations!r}.")
    matrices = _matrices(outline, operations) if structured else []
    return Allocation(
        outline=outline,
        structured={site.id: rank for site in matrices},
        vectors=tuple(site.id for site in outline.sites if vectors and site.kind == "vector"),
        sparse={},
        structured_type=structured,
        rule="uniform",
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
    return solve_budgets(problem, [parse_budget(budget, outline.backbone_params)])[0]


def random_structured_allocation(
    outline: ModelOutline,
    *,
    budget: int | str,
    structured: StructuredType = "lora",
    rank: int = 8,
    seed: int = 0,
) -> Allocation:
    """Whole modules on randomly chosen matrices, as many as the budget pays for.

    The matrices are gone through in random order, and each gets a module if what is left pays for it. The rest is
    spent on random entries of the sites that have none, so that the cost equals the budget exactly.

    Args:
        outline: The model.
        budget: As in `allocate`, one only.
        structured: The module.
        rank: Its rank.
        seed: Seed of the choice, recorded in the metadata.

    Returns:
        The allocation, with ``rule="random structured"``.

    Raises:
        BudgetError: If the budget pays for no module, is above what can be used, or cannot be read.
        ArgumentError: If the module or its rank is not allowed.
    """
    check_module(structured, rank)
    asked = parse_budget(budget, outline.backbone_params)
    check_minimum(outline, [asked])
    generator = np.random.default_rng(seed)
    params = asked - outline.always_trained_params
    placed, left = _place_modules(outline, structured, rank, params, generator)
    if not placed:
        raise BudgetError(f"`budget` {asked:,} pays for no {structured} of rank {rank}. Raise it or lower `rank`.")
    free = [site for site in outline.sites if site.id not in placed]
    usable = asked - left + sum(site.numel for site in free)
    if asked > usable:
        raise BudgetError(
            f"`budget` {asked:,} exceeds what rank {rank} can use ({usable:,}). Raise `rank` or lower `budget`."
        )
    return Allocation(
        outline=outline,
        structured=dict.fromkeys(placed, rank),
        vectors=(),
        sparse=_random_entries(free, left, generator),
        structured_type=structured,
        budget=asked,
        rule="random structured",
        always_trained=tuple(outline.always_trained),
        metadata={"criterion": "random", "seed": seed},
    )


def _place_modules(
    outline: ModelOutline, structured: StructuredType, rank: int, left: int, generator: np.random.Generator
) -> tuple[set[str], int]:
    """Ids of matrices in random order, each that can still be paid for, and what is left then."""
    matrices = [site for site in outline.sites if site.kind == "matrix"]
    placed = set()
    for number in generator.permutation(len(matrices)):
        params = module_params(matrices[number], structured, rank)
        if params <= left:
            placed.add(matrices[number].id)
            left -= params
    return placed, left


def _random_entries(sites: Sequence[Site], count: int, generator: np.random.Generator) -> dict[str, torch.Tensor]:
    """`count` scalars of all sites together, each equally likely: site id -> sorted flat indices."""
    if not count:
        return {}
    ends = np.cumsum([site.numel for site in sites])
    chosen = np.sort(generator.choice(int(ends[-1]), count, replace=False))
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    starts = ends - [site.numel for site in sites]
    return {
        site.id: torch.from_numpy(part - start)
        for site, part, start in zip(sites, parts, starts, strict=True)
        if part.size
    }
