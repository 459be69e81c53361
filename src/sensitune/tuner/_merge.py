"""Write an adapter's changes into a layer's base parameters, and take them out again bit for bit.

Subtracting what was added would not be exact, so a merge keeps what it overwrites: single entries of a sparse site, the
slice of any other, which for a LoRA is as large as the layer and waits on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sensitune.errors import MergeError
from sensitune.tuner._plan import SitePlan

if TYPE_CHECKING:
    from sensitune.tuner._layer import SptLayer


@dataclass(frozen=True, eq=False)
class Original:
    """What a merge overwrote at one site: the whole slice, or its values at the flat indices `entries`."""

    plan: SitePlan
    values: torch.Tensor
    entries: torch.Tensor | None


def check_mergeable(layer: SptLayer, adapters: list[str], *, safe_merge: bool) -> None:
    """See `SptLayer.check_mergeable`."""
    merged: dict[str, torch.Tensor] = {}
    for adapter in adapters:
        for slot, plan in layer.plans.get(adapter, {}).items():
            if plan.form == "adapter":
                layer.low_rank_delta(adapter, slot)  # raises
            if layer.base_parameter(plan.name).is_meta:
                raise MergeError(
                    f"`{plan.parameter}` is offloaded, and a merge would not reach it. Save the adapter and load it on "
                    "a base that is in memory, or write it as a plain LoRA with `sensitune.export_lora`."
                )
            if not safe_merge:
                continue
            base = layer.base_parameter(plan.name).detach()
            value = merged.get(plan.name, base)
            merged[plan.name] = value = value + layer.delta(adapter, slot, base).detach()
            if not torch.isfinite(value).all():
                raise MergeError(  # PEFT's own words first: its users match them
                    f"NaNs detected in the merged weights. The adapter {adapter} seems to be broken: it would put "
                    f"NaN or infinite values into `{plan.parameter}`. No weight was changed; train the adapter "
                    "again with a lower learning rate."
                )


@torch.no_grad()
def write_changes(layer: SptLayer, adapter: str, *, keep_originals: bool) -> list[Original]:
    """Add one adapter's changes to the base parameters of its layer.

    Args:
        layer: The layer; `check_mergeable` has passed.
        adapter: The adapter.
        keep_originals: False keeps nothing, for merges that are never undone.

    Returns:
        What was overwritten, in the order of the writes.
    """
    originals = []
    for slot, plan in layer.plans[adapter].items():
        target = plan.of(layer.base_parameter(plan.name).data)
        entries = layer.indices_of(adapter, slot) if plan.form == "sparse" else None
        if keep_originals:
            originals.append(Original(plan, _copy(plan, target, entries), entries))
        if entries is not None:
            coordinates = torch.unravel_index(entries, plan.shape)
            target[coordinates] += layer.tuned("sparse", adapter, slot).to(target.dtype)
        elif plan.form == "whole":
            target.add_(layer.tuned("whole", adapter, slot).to(target.dtype))
        else:
            _add_low_rank(layer, adapter, slot, target)
    return originals


@torch.no_grad()
def restore(layer: SptLayer, originals: list[Original]) -> None:
    """Undo `write_changes`.

    Args:
        layer: The layer.
        originals: What it returned.
    """
    for original in reversed(originals):
        target = original.plan.of(layer.base_parameter(original.plan.name).data)
        if original.entries is None:
            target.copy_(original.values)
        else:
            coordinates = torch.unravel_index(original.entries.to(target.device), original.plan.shape)
            target[coordinates] = original.values.to(target)


def _copy(plan: SitePlan, target: torch.Tensor, entries: torch.Tensor | None) -> torch.Tensor:
    if entries is not None:
        return target[torch.unravel_index(entries, plan.shape)]
    return target.clone() if plan.form == "whole" else target.to("cpu", copy=True)


def _add_low_rank(layer: SptLayer, adapter: str, slot: str, target: torch.Tensor) -> None:
    """Add a LoRA's change to its site, without a dense change in between where one precision will do."""
    plan = layer.plans[adapter][slot]
    factors = layer.tuned("up", adapter, slot), layer.tuned("down", adapter, slot)
    full = target.dtype in {torch.float32, torch.float64} and all(one.dtype == target.dtype for one in factors)
    if full and target.dim() == 2 and factors[1].dim() == 2:
        (target.t() if plan.transposed else target).addmm_(*factors)
        return
    delta = layer.low_rank_delta(adapter, slot)
    target.copy_(target.to(delta.dtype) + delta)
