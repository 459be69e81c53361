"""The products of a tuned linear layer: frozen weight, sparse entries and LoRA slices.

    y = x (W + S)ᵀ + b,    then for each LoRA slice    y[rows] += drop_path(up · down · dropout(x))

x ``[..., in]``, W ``[out, in]`` frozen, S sparse with n trained values, down ``[rank, in]``, up ``[slice, rank]``.
There is one signature and there are two implementations of it, and W is never written to:

- `portable`: ordinary differentiable operations. Right under every compiler, tracer and transform of ``torch.func``.
- `lean`: nodes of the autograd graph of our own, for everything else: they keep for backward only the input columns
  that the sparse values' gradients need, of a dropout one byte an element, and nothing that the model keeps anyway.

`tuned_linear` chooses. Both give exact gradients, second derivatives included.

Example:
    >>> import torch
    >>> from sensitune.tuner.kernels import LinearParts, SparsePattern, SparseValues, tuned_linear
    >>> x, weight = torch.ones(2, 3), torch.zeros(4, 3)
    >>> pattern = SparsePattern.build(rows=torch.tensor([1]), columns=torch.tensor([2]), shape=(4, 3))
    >>> tuned_linear(x, LinearParts(weight, sparse=SparseValues(pattern, torch.tensor([5.0])))).tolist()[0]
    [0.0, 5.0, 0.0, 0.0]
"""

from sensitune.tuner.kernels._parts import LinearParts, LowRank, SparseValues
from sensitune.tuner.kernels._pattern import SparsePattern
from sensitune.tuner.kernels._portable import beside, cast_like, drop_path, with_low_rank
from sensitune.tuner.kernels._slices import add_slices
from sensitune.tuner.kernels._tuned_linear import tuned_linear
from sensitune.tuner.kernels._watchers import plain_autograd

__all__ = [
    "LinearParts",
    "LowRank",
    "SparsePattern",
    "SparseValues",
    "add_slices",
    "beside",
    "cast_like",
    "drop_path",
    "plain_autograd",
    "tuned_linear",
    "with_low_rank",
]
