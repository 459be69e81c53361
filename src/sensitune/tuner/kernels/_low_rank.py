"""The LoRA slices of one adapter, added into a layer's output, as one node of the autograd graph.

``y[rows] += drop_path(up · down · dropout(x))`` for every slice. Kept for backward are the input by reference (or what
a LayerNorm keeps of it anyway), of the dropout which elements it dropped, one byte each, and the hidden features; never
a second copy of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sensitune.tuner.kernels._parts import LowRank
from sensitune.tuner.kernels._portable import drop_path
from sensitune.tuner.kernels._source import Source, Tensors, source_of

_DRAWS = 2**16  # a probability is rounded to 1/65536; the scale takes the rounded one, so that expectations are exact


def add_low_rank(y: torch.Tensor, x: torch.Tensor, low_rank: LowRank) -> torch.Tensor:
    """Add the slices' outputs to `y`, in place.

    Args:
        y: A fresh output ``[..., out]`` that no operation has saved for backward.
        x: Input ``[..., in]``.
        low_rank: The slices.

    Returns:
        `y`; differentiable, twice too, in `x`, the slices' weights and what `y` was made from.
    """
    found = source_of(x) if torch.is_grad_enabled() else None
    # Computing a norm's output again is one cheap pass; a GELU's would cost some 3 % of the layer's step.
    source, origins = (None, ()) if found is None or found[0].kind == "gelu" else found
    kept, kept_scale = draw_kept(x, low_rank.dropout) if low_rank.dropout else (None, 1.0)
    scale = _token_scale(x, low_rank.drop_path) if low_rank.drop_path else None
    dtype = x.dtype if torch.is_autocast_enabled(x.device.type) else low_rank.downs[0].dtype
    slices = _Slices(low_rank.starts, low_rank.ranks, kept_scale, dtype, source)
    result: torch.Tensor = _AddLowRank.apply(slices, y, x, low_rank.stacked_downs, kept, scale, *low_rank.ups, *origins)
    return result


def draw_kept(x: torch.Tensor, dropout: float) -> tuple[torch.Tensor, float]:
    """Choose which elements of `x` a dropout keeps, at random from torch's global generator.

    Args:
        x: Any tensor.
        dropout: Probability of dropping an element, in (0, 1).

    Returns:
        A uint8 tensor of its shape, 1 = kept, and the scale ``1 / (1 - dropout)`` of what is kept.
    """
    if x.device.type != "cpu":
        return torch.empty_like(x, dtype=torch.uint8).bernoulli_(1.0 - dropout), 1.0 / (1.0 - dropout)
    # A CPU draws one number after the other: one of 64 bits serves four elements.
    dropped = min(round(dropout * _DRAWS), _DRAWS - 1)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    draws = bits.view(torch.int16)[: x.numel()].view(x.shape)
    return (draws >= dropped - _DRAWS // 2).view(torch.uint8), _DRAWS / (_DRAWS - dropped)


def _token_scale(x: torch.Tensor, probability: float) -> torch.Tensor:
    """Drop-path's factor for every token ``[tokens, 1]``; one for each sample."""
    tokens = x.shape[:-1]
    scale = drop_path(x.new_ones(tokens[0], *(1 for _ in tokens[1:])), probability)
    return scale.expand(tokens).reshape(-1, 1)


@dataclass(frozen=True)
class _Slices:
    """What the node knows of the slices beside tensors."""

    starts: tuple[int, ...]
    ranks: list[int]
    kept_scale: float
    dtype: torch.dtype
    source: Source | None

    def of(self, y: torch.Tensor, ups: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The column ranges of ``[tokens, out]`` that belong to the slices, as views."""
        return [y.narrow(1, start, up.shape[0]) for start, up in zip(self.starts, ups, strict=True)]

    def input(self, x: torch.Tensor | None, origins: Tensors) -> torch.Tensor:
        """The input ``[tokens, in]``, kept or computed again."""
        if self.source is not None:
            return self.source.columns(origins, None)
        assert x is not None
        return x.reshape(-1, x.shape[-1])

    def read(self, flat: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
        """What the slices read of it: without what was dropped, in the dtype they compute in."""
        return (flat if kept is None else flat * kept.view(flat.shape)).to(self.dtype)

    def hidden(self, read: torch.Tensor, down: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        """The hidden features ``[tokens, Σ rank]``, scaled for dropout and drop-path."""
        return self.scaled(read @ down.to(self.dtype).t(), scale)

    def scaled(self, hidden: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        """Hidden features, or their gradient, times what dropout and drop-path scale by."""
        if scale is not None:
            return hidden * (scale.to(self.dtype) * self.kept_scale)
        return hidden if self.kept_scale == 1.0 else hidden * self.kept_scale


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        slices: _Slices,
        y: torch.Tensor,
        x: torch.Tensor,
        down: torch.Tensor,
        kept: torch.Tensor | None,
        scale: torch.Tensor | None,
        *others: torch.Tensor | None,
    ) -> torch.Tensor:
        ups = _ups(slices, others)
        hidden = slices.hidden(slices.read(x.reshape(-1, x.shape[-1]), kept), down, scale)
        for part, piece, up in zip(slices.of(_flat(y), ups), hidden.split(slices.ranks, 1), ups, strict=True):
            _add_product(part, piece, up.to(slices.dtype).t())
        ctx.mark_dirty(y)
        ctx.save_for_backward(None if slices.source else x, down, kept, scale, hidden, *others)
        ctx.slices, ctx.shape, ctx.x_dtype = slices, x.shape, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        slices: _Slices = ctx.slices
        x, down, kept, scale, hidden, *others = ctx.saved_tensors
        ups = _ups(slices, others)
        _, _, needs_x, needs_down, _, _, *needs_others = ctx.needs_input_grad
        parts = [part.to(slices.dtype) for part in slices.of(_flat(grad), ups)]
        pieces = [part @ up.to(slices.dtype) for part, up in zip(parts, ups, strict=True)]
        grad_hidden = slices.scaled(torch.cat(pieces, 1), scale)
        again = torch.is_grad_enabled()  # somebody will differentiate these gradients
        grad_down = None
        if needs_down or again:
            read = slices.read(slices.input(x, tuple(others[len(ups) :])), kept)
            grad_down = (grad_hidden.t() @ read).to(down.dtype)
            hidden = slices.hidden(read, down, scale) if again else hidden
        grad_x = None
        if needs_x:
            grad_x = grad_hidden @ down.to(slices.dtype)
            if kept is not None:
                grad_x.mul_(kept.view(grad_x.shape))
            grad_x = grad_x.to(ctx.x_dtype).view(ctx.shape)
        found: list[torch.Tensor | None] = [None] * len(others)
        for number, (part, piece) in enumerate(zip(parts, hidden.split(slices.ranks, 1), strict=True)):
            if needs_others[number]:
                found[number] = (part.t() @ piece).to(ups[number].dtype)
        return None, grad, grad_x, grad_down, None, None, *found


def _ups(slices: _Slices, others: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """The up projections, which stand before what the input is computed from."""
    return [up for up in others[: len(slices.ranks)] if up is not None]


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1, tensor.shape[-1]) if tensor.is_contiguous() else tensor.reshape(-1, tensor.shape[-1])


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``total += left @ right`` in place, in one product where one dtype will do."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
