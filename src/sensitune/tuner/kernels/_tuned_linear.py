"""The product of a tuned linear layer: which implementation a call takes, and the lean one as a sequence of nodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from sensitune.tuner.kernels._low_rank import add_low_rank
from sensitune.tuner.kernels._parts import LowRank, SparseValues
from sensitune.tuner.kernels._portable import portable
from sensitune.tuner.kernels._sparse import sparse_linear
from sensitune.tuner.kernels._watchers import plain_autograd


def tuned_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    transposed: bool = False,
    sparse: SparseValues | None = None,
    low_rank: Sequence[LowRank] = (),
) -> torch.Tensor:
    """``x (W + S)ᵀ + b`` and the LoRA slices, differentiable in everything but W.

    Args:
        x: Input ``[..., in]``.
        weight: The frozen weight as stored: ``[out, in]``, or ``[in, out]`` when `transposed`.
        bias: ``[out]`` or None.
        transposed: How the weight is stored.
        sparse: The sparse correction, if there is one.
        low_rank: The LoRA slices, one element for each adapter that has any.

    Returns:
        Output ``[..., out]``, in the dtype of `x` or, under autocast, in the autocast dtype.
    """
    implementation = lean if plain_autograd() else portable
    return implementation(x, weight, bias, transposed=transposed, sparse=sparse, low_rank=low_rank)


def lean(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    transposed: bool = False,
    sparse: SparseValues | None = None,
    low_rank: Sequence[LowRank] = (),
) -> torch.Tensor:
    """See `tuned_linear`."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if sparse is None:
        y = F.linear(x, weight.t() if transposed else weight, bias)
    else:
        y = sparse_linear(x, weight, bias, sparse, transposed=transposed)
    for slices in low_rank:
        y = add_low_rank(y, x, slices)
    return y
