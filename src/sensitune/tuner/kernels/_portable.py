"""The portable implementation: ordinary differentiable operations, which every compiler, tracer and transform follows.

It is the definition of what a tuned linear layer computes; `lean` computes the same with less time and memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from sensitune.tuner.kernels._parts import LinearParts, LowRank, SparseValues


def portable(x: torch.Tensor, parts: LinearParts) -> torch.Tensor:
    """See `tuned_linear`."""
    weight, sparse = parts.weight, parts.sparse
    apart = sparse is not None and sparse.pattern.used_columns is not None
    if sparse is not None and not apart:  # most columns are used: a second product would cost as much as the first
        weight = sparse.pattern.corrected(weight, sparse.values)
    y = F.linear(x, weight.t() if parts.transposed else weight, parts.bias)
    if sparse is not None and apart:
        y = y + beside(x, sparse).to(y.dtype)
    return with_low_rank(y, x, parts.low_rank)


def beside(x: torch.Tensor, sparse: SparseValues) -> torch.Tensor:
    """``x Sᵀ`` from the used columns of x and the box that S fills.

    Args:
        x: Input ``[..., in]``.
        sparse: S.

    Returns:
        A tensor ``[..., out]``.
    """
    pattern = sparse.pattern
    part = F.linear(pattern.keep(x), pattern.box(sparse.values).to(x.dtype))
    return F.pad(part, (pattern.rows[0], pattern.shape[0] - pattern.rows[1]))


def with_low_rank(y: torch.Tensor, x: torch.Tensor, low_rank: Sequence[LowRank]) -> torch.Tensor:
    """`y` with the outputs of LoRA slices added; `y` itself stays as it is.

    Args:
        y: Output ``[..., out]``.
        x: Input ``[..., in]``.
        low_rank: The slices, one element for each adapter that has any.

    Returns:
        The sum ``[..., out]``.
    """
    for slices in low_rank:
        down = slices.stacked_downs
        dropped = F.dropout(x, slices.dropout, training=slices.dropout > 0.0)
        pieces = F.linear(cast_like(dropped, down), down).split(slices.ranks, -1)
        for start, piece, up in zip(slices.starts, pieces, slices.ups, strict=True):
            part = drop_path(F.linear(piece, up), slices.drop_path)
            y = y + F.pad(part, (start, y.shape[-1] - start - part.shape[-1])).to(y.dtype)
    return y


def cast_like(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`x` in the dtype of a trained weight, except under autocast, which chooses for itself.

    Args:
        x: Any tensor.
        weight: The weight it is about to meet.

    Returns:
        The same values.
    """
    return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


def drop_path(x: torch.Tensor, probability: float) -> torch.Tensor:
    """Drop whole samples of a module's output and scale the rest up (stochastic depth).

    Args:
        x: ``[batch, ...]``.
        probability: Share of the samples to drop; 0 outside training.

    Returns:
        A tensor like `x`.
    """
    if probability == 0.0:
        return x
    mask = x.new_empty(x.shape[:1] + (1,) * (x.dim() - 1)).bernoulli_(1.0 - probability)
    return x * mask.div_(1.0 - probability)
