"""The change of one layer's weight as the two factors of one LoRA: exactly, and of low rank where there is one.

- LoRAs on slices of a fused matrix are one LoRA of the summed rank: their downs stacked, their ups side by side, each
  in the rows of its slice.
- Values in k columns of a matrix are a LoRA of rank k: down picks the columns, up holds the values. The same goes for
  rows; the smaller number is taken.
- Where all that together has a higher rank than the matrix can have, the change is written down whole, beside an
  identity.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn

from sensitune.sites import is_plain_linear, quantised_kind
from sensitune.tuner._conv import SptConv
from sensitune.tuner._layer import SptLayer
from sensitune.tuner._linear import SptLinear
from sensitune.tuner._plan import SitePlan

Factors: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""A ``[rank, in, *kernel]`` and B ``[out, rank]``; the change of the weight is their product."""

_NO_LAYER = "not the weight of a linear layer"
_IS_READ = "something computes with the weight without calling its layer, where PEFT's LoRA has no effect"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def why_not(layer: SptLayer, plan: SitePlan, parent: nn.Module) -> str | None:
    """The reason why PEFT's LoRA on a layer cannot do what a plan does, or None where it can.

    Args:
        layer: The tuned place.
        plan: What an adapter does to one of its sites.
        parent: The module that holds the layer.

    Returns:
        What stands in the way, to be said after the site's name.
    """
    if plan.form == "adapter":
        return "an Adapter, which is not linear"
    base = layer.get_base_layer()
    if plan.name != "weight" or not isinstance(layer, (SptLinear, SptConv)):
        reads = isinstance(base, nn.Linear) and plan.name == "weight"
        return _IS_READ if reads else _NO_LAYER
    if layer.weight_was_read or isinstance(parent, nn.TransformerEncoderLayer):  # torch's fused encoder
        return _IS_READ
    if isinstance(layer, SptLinear):
        return (
            None
            if is_plain_linear(base) or quantised_kind(base) is not None
            else f"{type(base).__name__} has a forward of its own"
        )
    return _why_no_convolution(base)


def _why_no_convolution(base: nn.Module) -> str | None:
    """PEFT's first factor is a convolution of the base's class with its kernel, stride and padding; no more."""
    if type(base) not in _CONVOLUTIONS:
        return f"{type(base).__name__} is a convolution of its own kind"
    assert isinstance(base, _CONVOLUTIONS)
    if base.groups != 1:
        return "a convolution with groups"
    if any(step != 1 and size != 1 for step, size in zip(base.dilation, base.kernel_size, strict=True)):
        return "a convolution with dilation"
    if base.padding_mode != "zeros" and base.padding not in {"valid", (0,) * len(base.kernel_size)}:
        return f"a convolution with padding mode '{base.padding_mode}'"
    return None


@torch.no_grad()
def factors_of(layer: SptLayer, adapter: str, slots: list[str]) -> Factors | None:
    """What some of an adapter's sites do to the weight of a layer, as one LoRA.

    Args:
        layer: The tuned layer.
        adapter: The adapter.
        slots: Those sites of the layer; `why_not` has nothing against them.

    Returns:
        The factors, in the type of the trained values; None where every value is zero.
    """
    shape = layer.shape_of_weight()
    downs, ups = [], []
    values = None
    for slot in slots:
        plan = layer.plans[adapter][slot]
        if plan.form == "lora":
            downs.append(layer.tuned("down", adapter, slot).flatten(1))
            ups.append(_in_rows(layer.tuned("up", adapter, slot), plan, shape))
        else:
            like = layer.tuned(plan.form, adapter, slot).new_empty(shape)
            change = _as_matrix(layer.delta(adapter, slot, like), plan)
            values = change if values is None else values + change
    if values is not None:
        down, up = _cover(values)
        downs.append(down)
        ups.append(up)
    down, up = torch.cat(downs), torch.cat(ups, dim=1)
    if not down.shape[0]:
        return None
    if down.shape[0] > min(up.shape[0], down.shape[1]):
        down, up = _written_down(up @ down)
    kernel = () if plan.transposed else shape[2:]
    return down.unflatten(1, (-1, *kernel)) if kernel else down, up


def _in_rows(up: torch.Tensor, plan: SitePlan, shape: torch.Size) -> torch.Tensor:
    """The second factor of a slice as one of the whole matrix."""
    whole = up.new_zeros(shape[1 if plan.transposed else 0], up.shape[1])
    whole[plan.start : plan.start + up.shape[0]] = up
    return whole


def _as_matrix(change: torch.Tensor, plan: SitePlan) -> torch.Tensor:
    return change.t() if plan.transposed else change.flatten(1)


def _cover(values: torch.Tensor) -> Factors:
    """A matrix as the product of its non-zero columns, or rows, and a choice of them; whichever are fewer."""
    rows, columns = (values.any(dim).nonzero()[:, 0] for dim in (1, 0))
    if columns.numel() <= rows.numel():
        return _choice(columns, values.shape[1], values), values[:, columns]
    return values[rows], _choice(rows, values.shape[0], values).t()


def _choice(places: torch.Tensor, size: int, like: torch.Tensor) -> torch.Tensor:
    """``[places, size]`` with a one in each row."""
    chosen = like.new_zeros(places.numel(), size)
    chosen[torch.arange(places.numel()), places] = 1
    return chosen


def _written_down(change: torch.Tensor) -> Factors:
    """A matrix beside the identity of its shorter side."""
    if change.shape[0] <= change.shape[1]:
        return change, torch.eye(change.shape[0]).to(change)
    return torch.eye(change.shape[1]).to(change), change
