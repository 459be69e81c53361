"""Several parents may share one layer: put modules in its place wherever a model holds it, and know its names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from sensitune.tuner._layer import SptLayer


def swap(model: nn.Module, replacements: Iterable[tuple[Any, nn.Module]]) -> None:
    """Replace modules at every place.

    Args:
        model: The model.
        replacements: What is replaced, and what comes in its place and keeps it where it holds it itself.
    """
    new_of = {id(old): new for old, new in replacements}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            new = new_of.get(id(child))
            if new is not None and new is not parent:
                setattr(parent, name, new)


def wrap_everywhere(model: nn.Module) -> None:
    """Put each wrapped layer where its base still stands, since PEFT visits a shared module at one place.

    Args:
        model: The model that the layers were put into.
    """
    layers = [module for module in model.modules() if isinstance(module, SptLayer) and hasattr(module, "base_layer")]
    swap(model, [(layer.get_base_layer(), layer) for layer in layers])


def other_names(model: nn.Module) -> dict[str, str]:
    """The further names of tuned layers that several modules share.

    Args:
        model: The model with the layers in place.

    Returns:
        Name -> the layer's first name, under which PEFT knows it.
    """
    first = {layer: name for name, layer in model.named_modules() if isinstance(layer, SptLayer)}
    names = [(name, layer) for name, layer in model.named_modules(remove_duplicate=False) if layer in first]
    return {name: first[layer] for name, layer in names if name != first[layer]}
