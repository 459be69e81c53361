"""Whole modules on randomly chosen matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import check_maximum, read_budget
from sensitune.allocation._cost import StructuredType, check_module, module_params
from sensitune.errors import BudgetError
from sensitune.sites import ModelOutline, Site


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
    asked = read_budget(budget, outline)
    generator = np.random.default_rng(seed)
    params = asked - outline.always_trained_params
    placed, left = _place_modules(outline, structured, rank, params, generator)
    if not placed:
        raise BudgetError(f"`budget` {asked:,} pays for no {structured} of rank {rank}. Raise it or lower `rank`.")
    free = [site for site in outline.sites if site.id not in placed]
    usable = asked - left + sum(site.numel for site in free)
    check_maximum(asked, usable, f"rank {rank}", way_out="Raise `rank` or lower `budget`.")
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
