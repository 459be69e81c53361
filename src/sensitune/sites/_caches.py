"""What models keep of what they computed from their parameters, such as LeViT's attention biases in evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def empty_caches(module: nn.Module) -> dict[str, Any]:
    """A module's caches as they are before anything is kept in them.

    A cache is told by its name, which says "cache", and by what it holds: nothing, tensors, or a list or dict of them.

    Args:
        module: Any module; those inside it are not looked at.

    Returns:
        Attribute name -> an empty value of its kind.
    """
    return {
        name: type(value)() if isinstance(value, (dict, list)) else None
        for name, value in vars(module).items()
        if "cache" in name.lower() and (value is None or _is_of_tensors(value))
    }


def forget_caches(model: nn.Module) -> None:
    """Empty the caches of a model and of every module inside, so that they are computed again.

    Args:
        model: The model.
    """
    for module in model.modules():
        vars(module).update(empty_caches(module))


def _is_of_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_of_tensors(each) for each in value)
    return isinstance(value, torch.Tensor)
