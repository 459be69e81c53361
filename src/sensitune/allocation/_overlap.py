"""What two allocations have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sensitune.allocation._allocation import Allocation


@dataclass(frozen=True, slots=True)
class Overlap:
    """Modules and values that two allocations tune alike, and those that one tunes alone.

    Attributes:
        modules: Matrices with a LoRA or an Adapter in both.
        modules_alone: Those that have one in the first alone, and in the second alone.
        values: Pretrained values that both train, in whole vectors or one by one.
        values_alone: Those that the first alone trains, and the second alone.
    """

    modules: int
    modules_alone: tuple[int, int]
    values: int
    values_alone: tuple[int, int]


def overlap(one: Allocation, other: Allocation) -> Overlap:
    """Count what two allocations share; sites are matched by id.

    Args:
        one: The first.
        other: The second.

    Returns:
        The counts.
    """
    modules = len(one.structured.keys() & other.structured.keys())
    first, second = trained_values(one), trained_values(other)
    values = sum(int(in_all(flat, site, [second]).sum()) for site, flat in first.items())
    return Overlap(
        modules=modules,
        modules_alone=(len(one.structured) - modules, len(other.structured) - modules),
        values=values,
        values_alone=(_count(first) - values, _count(second) - values),
    )


def trained_values(allocation: Allocation) -> dict[str, torch.Tensor]:
    """Site id -> flat indices of its values that are trained in place."""
    vectors = {name: torch.arange(allocation.site(name).numel) for name in allocation.vectors}
    return vectors | dict(allocation.sparse)


def in_all(flat: torch.Tensor, site: str, others: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Which of a site's indices all others hold too."""
    found = torch.ones(len(flat), dtype=torch.bool)
    for other in others:
        found &= torch.isin(flat, other.get(site, flat[:0]))
    return found


def _count(values: dict[str, torch.Tensor]) -> int:
    return sum(flat.numel() for flat in values.values())
