"""Models in few bits, for the benchmarks."""

from __future__ import annotations

import bitsandbytes as bnb
import torch
from torch import nn


def to_nf4(model: nn.Module, dtype: torch.dtype, *, keep: tuple[str, ...] = ("lm_head",)) -> nn.Module:
    """Put bitsandbytes' 4-bit layers (nf4, nested statistics) in the place of linear ones, one after the other.

    Args:
        model: The model, on the CPU; changed in place.
        dtype: The type that they compute in.
        keep: Names of layers that stay.

    Returns:
        The same model.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name not in keep:
                setattr(parent, name, nf4_linear(child, dtype))
    return model


def nf4_linear(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """One layer in 4 bits; its values are gone from the old one."""
    with torch.device("meta"):
        made = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=dtype,
            quant_type="nf4",
        )
    made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
    made.bias = layer.bias
    layer.weight = None
    return made.to("cpu")
