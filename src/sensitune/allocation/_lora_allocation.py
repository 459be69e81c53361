"""Ranks of plain LoRAs: the published thresholds, applied to one rank after the other.

SPT gives a matrix a module of P parameters once ``c ≥ P / alpha`` of its scalars are selected. A further rank of a
LoRA costs ``in + out``, so a matrix has earned k ranks once ``c ≥ k (in + out) / alpha``. The ranking is walked down
and each rank bought when it is earned, until what is left pays for no further one; nothing is spent on single values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import check_maximum, read_budget
from sensitune.allocation._cost import Rules, module_params
from sensitune.allocation._cut import Floats, flat_array
from sensitune.allocation._matrices import as_peft_sees_it
from sensitune.allocation._problem import check_scores, origin_of
from sensitune.errors import ArgumentError, BudgetError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import Site

MAX_RANK = 16


def lora_allocation(
    sensitivity: Sensitivity,
    *,
    budget: int | str,
    rank: int | None = None,
    max_rank: int | None = None,
    alpha: float = 10.0,
    allowed: Sequence[str] | None = None,
) -> Allocation:
    """Choose LoRAs alone, on matrices as they are stored, for trainers and servers that know nothing else.

    Args:
        sensitivity: The scores. A fused q, k, v is one matrix here, whether or not it was scored as three.
        budget: Trainable parameters, the head not counted: a number, or text as in `allocate`. The cost is at most
            that, and below it by less than the cheapest rank that could still have been bought.
        rank: One rank for every chosen matrix, whole modules as published; None = a rank of its own for each.
        max_rank: Highest rank of a matrix where `rank` is None; None = 16, which is what vLLM takes unless told
            otherwise.
        alpha: A matrix has earned a rank from (in + out) / alpha selected scalars on; at least 1. 10 as published.
        allowed: Which matrices: operations (``"fc1"``), a module's own name (``"q_proj"``), or its full name or a shell
            pattern for that (``"blocks.1?.mlp.*"``); None = all.

    Returns:
        The allocation, with ``rule="lora"``: ranks only, nothing sparse, no vectors, no tokens.

    Raises:
        ArgumentError: If an option is out of range, or `rank` and `max_rank` are both given.
        BudgetError: If `budget` does not pay for one rank, or exceeds what the ranks can use.
        ModelError: If there is no matrix.
        NonFiniteError: If a score is not finite.

    Source:
        The rule for one rank is He et al., ICCV 2023 (arXiv 2303.08566), section 3.3; its use rank by rank is ours.
    """
    if rank is not None and max_rank is not None:
        raise ArgumentError(f"Give `rank` or `max_rank`, not both. Got {rank} and {max_rank}.")
    if max_rank is not None and max_rank < 1:
        raise ArgumentError(f"`max_rank` must be at least 1. Got {max_rank}.")
    rules = Rules("lora", 1 if rank is None else rank, alpha)
    seen = as_peft_sees_it(sensitivity, allowed)
    params = read_budget(budget, seen.outline)
    most = 1 if rank is not None else (max_rank or MAX_RANK)
    ladders = [_ladder(seen, site, rules, most) for site in seen.sites]
    cheapest = min(seen.sites, key=lambda site: module_params(site, "lora", rules.rank))
    if (least := module_params(cheapest, "lora", rules.rank)) > params:
        raise BudgetError(
            f"`budget` must pay for one LoRA of rank {rules.rank}; the cheapest, on `{cheapest.module}`, takes "
            f"{least:,} parameters. Got {params:,}."
        )
    usable = sum(ladder.step * ladder.earned.size for ladder in ladders)
    user = f"LoRAs of rank {rank}" if rank is not None else f"LoRAs of rank {most} at most"
    check_maximum(params, usable, user, way_out=f"Raise `{'max_rank' if rank is None else 'rank'}` or lower `budget`.")
    bought = _buy(ladders, params)
    return Allocation(
        outline=seen.outline,
        structured={site.id: count * rules.rank for site, count in zip(seen.sites, bought, strict=True) if count},
        vectors=(),
        sparse={},
        structured_type="lora",
        budget=params,
        alpha=alpha,
        rule="lora",
        metadata=origin_of(sensitivity),
    )


@dataclass(frozen=True, eq=False)
class _Ladder:
    """What one matrix can buy.

    Attributes:
        step: Parameters of a step: of one rank, or of a whole module.
        earned: ``[steps]`` score down to which the ranking must be walked for each step; falling, above zero.
    """

    step: int
    earned: Floats


def _ladder(sensitivity: Sensitivity, site: Site, rules: Rules, most: int) -> _Ladder:
    scores = sensitivity.score_of(site)
    check_scores(site, scores)
    step = module_params(site, "lora", rules.rank)
    steps = most if most == 1 else min(most, site.in_features, site.out_features)
    counts = [math.ceil(number * step / rules.alpha) for number in range(1, steps + 1)]
    counts = [count for count in counts if count <= site.numel]
    if not counts:
        return _Ladder(step, np.empty(0, np.float32))
    highest = torch.topk(torch.from_numpy(flat_array(scores)), counts[-1]).values.numpy()
    earned: Floats = highest[np.array(counts) - 1]
    return _Ladder(step, earned[earned > 0])


def _buy(ladders: Sequence[_Ladder], params: int) -> list[int]:
    """Steps that each matrix buys; ties go by site order. One that cannot pay for a step buys no further ones."""
    owner = np.repeat(np.arange(len(ladders)), [ladder.earned.size for ladder in ladders])
    order = np.argsort(-np.concatenate([ladder.earned for ladder in ladders]), kind="stable")
    bought, closed = [0] * len(ladders), set()
    for number in owner[order].tolist():
        if number in closed:
            continue
        if ladders[number].step <= params:
            bought[number] += 1
            params -= ladders[number].step
        else:
            closed.add(number)
    return bought
