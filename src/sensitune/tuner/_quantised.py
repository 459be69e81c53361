"""A tuned linear layer over a weight that is stored in few bits, and the way back to a plain model.

The layer runs as it is, on its stored bytes, and every change is added to its output: ``y = base(x) + Δb``, then
``y[rows] += S[rows, columns] · x[columns]``, LoRAs and Adapters. A merge would have to round the sum to the few bits
again, so it is refused.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sensitune.errors import MergeError, ModelError
from sensitune.sites import (
    allow_repacking,
    dequantised_weight,
    quantised_kind,
    repacked_by,
    stop_repacking,
)
from sensitune.tuner._linear import SptLinear
from sensitune.tuner._plan import SitePlan
from sensitune.tuner._swap import swap
from sensitune.tuner.kernels import SparseValues, beside, cast_like, with_low_rank

_STOPPED = "spt_stopped_repacking"


class SptQuantised(SptLinear):
    """Wraps a linear layer of a `sensitune.sites.quantised_kind`."""

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.weight_forms = ("sparse", "whole")

    @property
    def weight(self) -> torch.Tensor:
        """The base's, as stored: nobody can compute with it but the layer."""
        return self.base_parameter("weight")

    def _is_plain(self) -> bool:
        return True

    def _bias(self, adapters: list[str]) -> torch.Tensor | None:
        """The change of the bias: the base adds its own."""
        change = None
        for adapter, slot, plan in self.active_slots("sparse", "whole", adapters=adapters):
            if plan.name == "bias":
                delta = self.delta(adapter, slot, self.base_parameter("bias"))
                change = delta if change is None else change + delta
        return change

    def _tuned(self, x: torch.Tensor, adapters: list[str], bias: torch.Tensor | None) -> torch.Tensor:
        base: torch.Tensor = self.base_layer(x)
        y = base if bias is None else base + bias.to(base.dtype)
        sparse = [entry for entry in self.active_slots("sparse", adapters=adapters) if entry[2].name == "weight"]
        pattern = self._pattern(sparse)
        if pattern is not None:
            values = SparseValues(pattern, pattern.entries(self._sparse_values(sparse)))
            y = y + beside(x, values).to(y.dtype)
        dense = [*self.active_slots("whole", adapters=adapters), *(sparse if pattern is None else [])]
        for adapter, slot, plan in dense:
            if plan.name == "weight":
                change = self.delta(adapter, slot, self._like(adapter, slot, plan))
                y = y + F.linear(cast_like(x, change), change).to(y.dtype)
        y = with_low_rank(y, x, self._low_rank(adapters))
        # Adapters are added in place, and somebody else may hold what the base returned.
        return y.clone() if y is base else y

    def _like(self, adapter: str, slot: str, plan: SitePlan) -> torch.Tensor:
        return self.tuned(plan.form, adapter, slot).new_empty(self.weight_shape)

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """The change of the dequantised weight by one adapter, dense, as PEFT's own layers offer it.

        Args:
            adapter: The adapter.

        Returns:
            A tensor ``[out, in]``.
        """
        total = torch.zeros(self.weight_shape, device=self.base_parameter("weight").device)
        for slot, plan in self.plans[adapter].items():
            if plan.name == "weight":
                total = total + self.delta(adapter, slot, total)
        return total

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
        """None: nobody computes with the stored weight in the layer's place."""
        return None

    def check_mergeable(self, adapter_names: list[str], *, safe_merge: bool) -> None:
        """Refuse to merge a change of the stored weight, before anything changes.

        Args:
            adapter_names: The adapters about to be merged.
            safe_merge: See `SptLayer.check_mergeable`.

        Raises:
            MergeError: If one of them changes the weight.
        """
        for adapter in adapter_names:
            for plan in self.plans.get(adapter, {}).values():
                kind = quantised_kind(self.base_layer)
                if plan.name == "weight" and kind is not None:
                    raise MergeError(
                        f"`{plan.parameter}` is stored in few bits ({kind.label}): a merged weight would be rounded to "
                        "them again. Write the adapter as a plain LoRA with `sensitune.export_lora`; or save it, load "
                        "the base again, call `sensitune.dequantise(base)` and merge there."
                    )
        super().check_mergeable(adapter_names, safe_merge=safe_merge)


def keep_stored_bytes(model: nn.Module) -> None:
    """Have no layer of a model rearrange its stored bytes for inference: no gradient would come through in training.

    Args:
        model: The model that gets an adapter.

    Raises:
        ModelError: If one has done so already.
    """
    for name, module in model.named_modules():
        if reason := repacked_by(module):
            raise ModelError(f"`{name}` {reason}.")
    vars(model).setdefault(_STOPPED, []).extend(module for module in model.modules() if stop_repacking(module))


def release_stored_bytes(model: nn.Module) -> None:
    """Undo `keep_stored_bytes`, where all adapters go.

    Args:
        model: The model that the adapters were in.
    """
    for module in vars(model).pop(_STOPPED, []):
        allow_repacking(module)


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
