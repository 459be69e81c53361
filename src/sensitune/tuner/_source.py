"""Input columns that need not be kept, because what they are computed from is kept already.

A linear layer's input is mostly the output of a LayerNorm or a GELU, whose own backward keeps its input (and, for the
norm, mean and inverse deviation). Keeping references to those costs nothing, and the few columns that a sparse gradient
needs are computed again from them: exactly the same for GELU, to the last bit or two for the norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F


@dataclass(frozen=True, eq=False)
class Source:
    """How to compute columns of an input again.

    Attributes:
        kind: The operation that made the input.
        tensors: What it is computed from: GELU's input; or the norm's input, mean, inverse deviation, weight and bias.
        approximate: GELU's approximation, ``"none"`` or ``"tanh"``.
    """

    kind: Literal["gelu", "layer_norm"]
    tensors: tuple[torch.Tensor | None, ...]
    approximate: str = "none"

    def columns(self, tensors: tuple[torch.Tensor | None, ...], chosen: torch.Tensor | None) -> torch.Tensor:
        """The input's columns ``[tokens, C]``, or all of it.

        Args:
            tensors: `tensors` as backward gets them back.
            chosen: Columns, int64 ``[C]``; None for all.

        Returns:
            What ``x.reshape(-1, in)[:, chosen]`` was.
        """
        flat = _chosen(_flat(tensors[0]), chosen)
        if self.kind == "gelu":
            return F.gelu(flat, approximate=self.approximate)
        _, mean, deviation, weight, bias = tensors
        normalised = (flat - _flat(mean)).mul_(_flat(deviation))
        if weight is not None:
            normalised.mul_(_chosen(weight, chosen))
        return normalised if bias is None else normalised.add_(_chosen(bias, chosen))


def source_of(x: torch.Tensor) -> Source | None:
    """The source of a layer's input, if it came from a GELU or a LayerNorm over its last dimension.

    Under saved-tensor hooks (activation checkpointing, offloading) what an operation keeps is not at hand, and reading
    it could start a recomputation; then there is no source and the columns are kept as usual.

    Args:
        x: The layer's input, with its history.

    Returns:
        The source, or None.
    """
    node: Any = x.grad_fn
    if node is None or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return None
    if node.name() == "GeluBackward0":
        return Source("gelu", (node._saved_self.detach(),), node._saved_approximate)
    if node.name() == "NativeLayerNormBackward0" and tuple(node._saved_normalized_shape) == tuple(x.shape[-1:]):
        saved = (node._saved_input, node._saved_result1, node._saved_result2, node._saved_weight, node._saved_bias)
        return Source("layer_norm", tuple(None if tensor is None else tensor.detach() for tensor in saved))
    return None


def _flat(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None  # only a norm's weight and bias may be missing
    return tensor.reshape(-1, tensor.shape[-1])


def _chosen(tensor: torch.Tensor, chosen: torch.Tensor | None) -> torch.Tensor:
    return tensor if chosen is None else tensor.index_select(-1, chosen)
