"""The lean implementation: nodes of the autograd graph of our own, which keep next to nothing for backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from sensitune.tuner.kernels._low_rank import add_low_rank
from sensitune.tuner.kernels._parts import LowRank, SparseValues
from sensitune.tuner.kernels._sparse import sparse_linear


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
