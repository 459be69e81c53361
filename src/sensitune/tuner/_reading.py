"""What others see of a tuned layer's weight: torch's fused encoder, torchvision's Swin and Mamba never call the layer.

They read ``layer.weight`` and compute with it. What they get stands for the weight that the layer itself computes with,
``W + S + up · down``, and becomes it in the moment somebody computes with it; a linear product with it is the layer's
own. Until then it costs nothing: many models read no more than a weight's dtype or device. Kernels that take plain
tensors only (the fused encoder's) leave it alone, and their callers go through the layers instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from sensitune.errors import ModelError
from sensitune.tuner.kernels import plain_autograd

if TYPE_CHECKING:
    from sensitune.tuner._wrapper import SptWrapper

# What can be said of a weight without computing it; which of these torch has depends on its release.
_PROPERTIES = (
    "shape", "dtype", "device", "ndim", "layout", "itemsize", "is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu",
    "is_quantized", "is_sparse", "is_nested",
)  # fmt: skip
_METHODS = (
    "size", "dim", "ndimension", "numel", "nelement", "element_size", "get_device", "is_floating_point", "is_complex",
    "__len__",
)  # fmt: skip
_FACTS: set[Any] = {
    *(getattr(torch.Tensor, name).__get__ for name in _PROPERTIES if hasattr(torch.Tensor, name)),
    *(getattr(torch.Tensor, name) for name in _METHODS),
    *(torch.numel, torch.is_floating_point, torch.is_complex),
}
_IS_OF_DATA: Any = torch.Tensor.data.__get__  # type: ignore[attr-defined]  # mypy takes the property for its value


class ReadParameter(torch.Tensor):
    """A tuned layer's parameter, for whoever computes with it instead of calling the layer."""

    _layer: SptWrapper
    _name: str
    _detached: bool

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Facts are the base's; anything else is done with the tuned values."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _FACTS:
                return func(*args, **kwargs)
            first = args[0] if args else None
            if isinstance(first, ReadParameter):
                if func is torch.Tensor.requires_grad_:
                    first._layer.base_parameter(first._name).requires_grad_(*args[1:], **kwargs)
                    return first
                if func == _IS_OF_DATA:
                    return _stand_in(first._layer, first._name, detached=True)
                if _writes(func.__name__):
                    raise ModelError(
                        f"`{first._place()}` is tuned and cannot be changed in place ({func.__name__}): the change "
                        f"would be lost. Write to the base's `base_layer.{first._name}`."
                    )
            if func is F.linear:
                return _linear(*args, **kwargs)
            return func(*_worked_out(list(args)), **_worked_out(kwargs))

    def _place(self) -> str:
        plans = next(iter(self._layer.plans.values()))
        return f"{next(iter(plans.values())).module}.{self._name}".lstrip(".")

    def _value(self) -> torch.Tensor:
        layer = self._layer
        if _has_adapter(layer, self._name):
            raise ModelError(
                f"`{self._place()}` is read by a module that never calls the layer, which has an Adapter: no weight "
                'has its effect. Use `structured="lora"`, or leave the layer out with `exclude` or `exclude_modules`.'
            )
        layer.weight_was_read = True
        value = layer.computed_with(self._name)
        return value.detach() if self._detached else value


def read(layer: SptWrapper, name: str) -> torch.Tensor | None:
    """What ``layer.weight`` and ``layer.bias`` are.

    Args:
        layer: The tuned layer.
        name: ``weight`` or ``bias``.

    Returns:
        The base's parameter where no adapter that is applied changes it, else what stands for the changed one.
    """
    if layer.disable_adapters and layer.merged:
        layer.unmerge()
    base: torch.Tensor | None = getattr(layer.base_layer, name)
    # Between two forwards FSDP1 compares the attribute with its own parameter, to find what the user replaced.
    if not layer.changes(name) or getattr(base, "_fsdp_flattened", False):
        return base
    if not plain_autograd() and not _has_adapter(layer, name):
        return layer.computed_with(name)  # a compiler drops what is not needed, and a tracer needs the values
    return _stand_in(layer, name, detached=False)


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """What most do with a weight is what the layer does; so the layer does it, dropout and Adapters included."""
    x, bias = _worked_out(input), _worked_out(bias)
    if isinstance(weight, ReadParameter) and not weight._detached:
        weight._layer.weight_was_read = True
        result = weight._layer.linear(x, bias)
        if result is not None:
            return result
    return F.linear(x, _worked_out(weight), bias)


def _stand_in(layer: SptWrapper, name: str, *, detached: bool) -> ReadParameter:
    shown = layer.base_parameter(name).detach().as_subclass(ReadParameter)
    shown._layer, shown._name, shown._detached = layer, name, detached
    return shown


def _has_adapter(layer: SptWrapper, name: str) -> bool:
    return any(plan.name == name for _, _, plan in layer.active_slots("adapter"))


def _worked_out(value: Any) -> Any:
    if isinstance(value, ReadParameter):
        return value._value()
    if isinstance(value, dict):
        return {name: _worked_out(each) for name, each in value.items()}
    return type(value)(map(_worked_out, value)) if type(value) in {list, tuple} else value


def _writes(function: str) -> bool:
    if function.endswith("__"):
        return function in {"__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"}
    return function.endswith("_")
