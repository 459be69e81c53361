"""The product of a tuned linear layer: which implementation a call takes, and the lean one as a sequence of nodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sensitune.tuner.kernels._low_rank import add_low_rank
from sensitune.tuner.kernels._parts import LinearParts
from sensitune.tuner.kernels._portable import portable
from sensitune.tuner.kernels._sparse import sparse_linear
from sensitune.tuner.kernels._watchers import plain_autograd


def tuned_linear(x: torch.Tensor, parts: LinearParts) -> torch.Tensor:
    """``x (W + S)ᵀ + b`` and the LoRA slices, differentiable in everything but W.

    Args:
        x: Input ``[..., in]``.
        parts: The layer.

    Returns:
        Output ``[..., out]``, in the dtype of `x` or, under autocast, in the autocast dtype.
    """
    return lean(x, parts) if plain_autograd() else portable(x, parts)


def lean(x: torch.Tensor, parts: LinearParts) -> torch.Tensor:
    """See `tuned_linear`."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if parts.sparse is None:
        y = F.linear(x, parts.weight.t() if parts.transposed else parts.weight, parts.bias)
    else:
        y = sparse_linear(x, parts.weight, parts.bias, parts.sparse, transposed=parts.transposed)
    for slices in parts.low_rank:
        y = add_low_rank(y, x, slices)
    return y
