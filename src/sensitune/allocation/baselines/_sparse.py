"""Single scalars alone, chosen by the scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._problem import origin_of
from sensitune.sensitivity import Sensitivity


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
