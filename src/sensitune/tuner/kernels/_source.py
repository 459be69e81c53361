"""Inputs that need not be kept, because what they are computed from is kept already.

A linear layer's input is mostly the output of a LayerNorm or a GELU, whose own backward keeps its input (and, for the
norm, mean and inverse deviation). References to those cost nothing, and what a gradient needs of the layer's input is
computed again from them: exactly the same for GELU, to the last bit or two for the norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F


def _unknown(ignored: bool) -> object:
    return True


# Under saved-tensor hooks (activation checkpointing, offloading) what an operation keeps is not at hand, and reading it
# could start a recomputation. The name is private and missing in torch 2.7; without it, hooks are taken to be there.
_hooks_on_saved_tensors: Callable[[bool], object | None] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", _unknown
)


Tensors = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True)
class Source:
    """How to compute an input again. It holds no tensors: those go through ``save_for_backward``.

    Attributes:
        kind: The operation that made the input.
        approximate: GELU's approximation, ``"none"`` or ``"tanh"``.
    """

    kind: Literal["gelu", "layer_norm"]
    approximate: str = "none"

    def columns(self, tensors: Tensors, chosen: torch.Tensor | None) -> torch.Tensor:
        """The input's columns ``[tokens, C]``, or all of it.

        Args:
            tensors: What `source_of` returned, as backward gets it back.
            chosen: Columns, int64 ``[C]``; None for all.

        Returns:
            What ``x.reshape(-1, in)[:, chosen]`` was; differentiable in what the operation read.
        """
        read = _flat(tensors[0])
        if self.kind == "gelu":
            return F.gelu(_chosen(read, chosen), approximate=self.approximate)
        _, mean, deviation, weight, bias = tensors
        mean, deviation = _flat(mean), _flat(deviation)
        if torch.is_grad_enabled():
            mean, deviation = _statistics(read, deviation)
        normalised = (_chosen(read, chosen) - mean).mul_(deviation)
        if weight is not None:
            normalised.mul_(_chosen(weight, chosen))
        return normalised if bias is None else normalised.add_(_chosen(bias, chosen))


def source_of(x: torch.Tensor) -> tuple[Source, Tensors] | None:
    """The source of a layer's input, if it came from a GELU or a LayerNorm over its last dimension.

    Args:
        x: The layer's input, with its history.

    Returns:
        The source and the tensors it computes from: GELU's input; or the norm's input, mean, inverse deviation, weight
        and bias. None if there is none.
    """
    node: Any = x.grad_fn
    if node is None or _hooks_on_saved_tensors(False) is not None:
        return None
    if node.name() == "GeluBackward0":
        return Source("gelu", node._saved_approximate), (node._saved_self,)
    if node.name() == "NativeLayerNormBackward0" and tuple(node._saved_normalized_shape) == tuple(x.shape[-1:]):
        statistics = node._saved_result1, node._saved_result2
        return Source("layer_norm"), (node._saved_input, *statistics, node._saved_weight, node._saved_bias)
    return None


def _statistics(read: torch.Tensor, deviation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and inverse deviation ``[tokens, 1]`` of a norm's input, differentiably; the epsilon is what it was."""
    variance, mean = torch.var_mean(read, -1, correction=0, keepdim=True)
    epsilon = (deviation**-2 - variance).detach()
    return mean, (variance + epsilon).rsqrt()


def _flat(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None  # only a norm's weight and bias may be missing
    return tensor.reshape(-1, tensor.shape[-1])


def _chosen(tensor: torch.Tensor, chosen: torch.Tensor | None) -> torch.Tensor:
    return tensor if chosen is None else tensor.index_select(-1, chosen)
