"""The way from a base in few bits to a plain one, into which adapters can be merged."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sensitune.errors import ModelError
from sensitune.sites import dequantised_weight, quantised_kind
from sensitune.tuner._swap import swap


def dequantise(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Put plain linear layers in the place of a model's quantised ones, with the weights that those compute with.

    An adapter that was trained on the quantised model does the same on this one, up to the rounding of the layers'
    own products, and can be merged into it.

    Args:
        model: The model, without adapters; changed in place.
        dtype: Type of the new weights; None = the type that each layer dequantises to.

    Returns:
        The same model.

    Raises:
        ModelError: If it holds adapters, no quantised layer that is known, or one that is offloaded.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ModelError(
            "`dequantise` takes the plain model, and this one holds adapters. Save them, load the base again, "
            "dequantise it and load the adapters on it."
        )
    found = [(name, module) for name, module in model.named_modules() if quantised_kind(module) is not None]
    if not found:
        raise ModelError(f"This {type(model).__name__} has no quantised layer that could be dequantised.")
    for name, module in found:
        if any(tensor.is_meta for tensor in module.parameters()):
            raise ModelError(f"`{name}` is offloaded, so its values are not at hand. Load the model whole.")
    for _, module in found:  # one after the other: both forms of all layers at once may not fit
        swap(model, [(module, _plain(module, dtype))])
    _forget_quantisation(model)
    return model


def _plain(module: Any, dtype: torch.dtype | None) -> nn.Linear:
    weight = dequantised_weight(module)
    weight = weight.to(dtype or weight.dtype)
    with torch.device("meta"):
        plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, dtype=weight.dtype)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        plain.bias = nn.Parameter(module.bias.detach().to(weight.dtype), requires_grad=module.bias.requires_grad)
    return plain.train(module.training)


def _forget_quantisation(model: Any) -> None:
    """What transformers notes on a model that it has quantised, and would save it by."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    for note in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if getattr(model, note, False):
            setattr(model, note, False)
