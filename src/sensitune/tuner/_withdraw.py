"""Take an adapter that cannot be used out again, so that the model is as it was before."""

from __future__ import annotations

from typing import Any

from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from sensitune.tuner._calls import stop_watching
from sensitune.tuner._layer import SptLayer
from sensitune.tuner._stored_bytes import release_stored_bytes
from sensitune.tuner._swap import swap
from sensitune.tuner._tensors import SptTensors, detach

_TRAINED = "spt_trained_before"


def remember_trained(model: nn.Module, adapter: str) -> None:
    """Note which parameters require a gradient, before PEFT freezes the base for an adapter.

    Args:
        model: The model the adapter's layers will be put into.
        adapter: The adapter.
    """
    names = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    vars(model).setdefault(_TRAINED, {})[adapter] = names


def forget_trained(model: nn.Module) -> None:
    """Drop the notes, where all adapters go.

    Args:
        model: The model the adapters' layers are in.
    """
    vars(model).pop(_TRAINED, None)


def withdraw(model: nn.Module, adapter: str) -> None:
    """Take an adapter out, and restore which parameters require a gradient.

    Args:
        model: The model the adapter's layers were put into, with or without PEFT's wrapper around it.
        adapter: The adapter.
    """
    inner: Any = getattr(getattr(model, "base_model", None), "model", model) if hasattr(model, "peft_type") else model
    for name, module in list(inner.named_modules()):
        if isinstance(module, SptLayer) and adapter in module.plans:
            _withdraw_layer(inner, name, module, adapter)
        elif isinstance(module, AuxiliaryTrainingWrapper) and adapter in getattr(module, "modules_to_save", {}):
            _withdraw_copy(inner, name, module, adapter)
    trained_before = vars(inner).get(_TRAINED, {}).pop(adapter, frozenset())
    for name, parameter in inner.named_parameters():
        parameter.requires_grad_(name in trained_before)
    configs = getattr(model, "peft_config", {})
    configs.pop(adapter, None)
    if not configs:
        stop_watching(inner)
        forget_trained(inner)
        release_stored_bytes(inner)
        vars(inner).pop("peft_config", None)


def _withdraw_layer(model: nn.Module, name: str, layer: SptLayer, adapter: str) -> None:
    if set(layer.plans) != {adapter}:
        layer.delete_adapter(adapter)
    elif isinstance(layer, SptTensors):
        detach(layer.get_base_layer())
    else:
        _replace(model, name, layer.get_base_layer())


def _withdraw_copy(model: nn.Module, name: str, wrapper: Any, adapter: str) -> None:
    if set(wrapper.modules_to_save) != {adapter}:
        del wrapper.modules_to_save[adapter]
    else:
        _replace(model, name, wrapper.original_module)


def drop_idle_copies(model: nn.Module) -> None:
    """Put the original back where a module has copies of which none is active, which PEFT before 0.21 cannot unload.

    Args:
        model: The model the adapter's layers are in.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper) and not module.active_adapters:
            _replace(model, name, module.original_module)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    swap(model, [(model.get_submodule(name), module)])
