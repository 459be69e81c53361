"""Add to column ranges of an output without copying the rest of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from sensitune.tuner.kernels._watchers import plain_autograd


class _AddSlices(torch.autograd.Function):
    """Add tensors into column ranges of a fresh output, in place; their gradients are views of its gradient."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, starts: tuple[int, ...], *parts: torch.Tensor) -> torch.Tensor:
        for start, part in zip(starts, parts, strict=True):
            y.narrow(-1, start, part.shape[-1]).add_(part)
        ctx.mark_dirty(y)
        ctx.ranges = [(start, part.shape[-1], part.dtype) for start, part in zip(starts, parts, strict=True)]
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (grad, None, *(grad.narrow(-1, start, size).to(dtype) for start, size, dtype in ctx.ranges))


def add_slices(y: torch.Tensor, parts: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """``y[..., start : start + n] += part`` for every ``(start, part)``, without copying the rest of y.

    Args:
        y: A fresh output ``[..., out]`` that no operation has saved for backward.
        parts: Start column and tensor ``[..., n]`` of each addend.

    Returns:
        The sum; y itself, changed in place, where only autograd is watching.
    """
    if plain_autograd():
        result: torch.Tensor = _AddSlices.apply(y, tuple(start for start, _ in parts), *(part for _, part in parts))
        return result
    for start, part in parts:
        y = y + F.pad(part, (start, y.shape[-1] - start - part.shape[-1])).to(y.dtype)
    return y
