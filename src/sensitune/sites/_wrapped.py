"""The model inside what is wrapped around it, and the models of timm and transformers inside a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sensitune.errors import ModelError


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch's wrappers that change how it runs, not what it is: one outline, one adapter for both.

    Args:
        model: Any module, perhaps inside ``DataParallel``, ``DistributedDataParallel`` or what ``torch.compile``
            returns.

    Returns:
        The module inside; the model itself if there is no wrapper.

    Raises:
        ModelError: If a wrapper has taken the parameters apart (FSDP) or the model cannot be changed (TorchScript).
    """
    inside: Any = model
    while True:
        if isinstance(inside, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inside = inside.module
        elif isinstance(inside, _compiled()):
            inside = inside._orig_mod
        else:
            break
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in inside.modules()):
        raise ModelError(
            "FullyShardedDataParallel flattens the parameters, so that no site has a name or a shape. Give the model "
            "before it is wrapped, and wrap what `get_peft_model` returns."
        )
    if isinstance(inside, torch.jit.ScriptModule):
        raise ModelError(f"A {type(inside).__name__} cannot be tuned. Give the model before it was scripted or traced.")
    return inside  # type: ignore[no-any-return]


def _compiled() -> tuple[type[nn.Module], ...]:
    """What ``torch.compile`` returns; loaded wherever there is one, and slow to load where there is none."""
    found = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", None)
    return () if found is None else (found,)


def is_transformers_model(model: nn.Module) -> bool:
    """Whether the model follows transformers' conventions, told without importing transformers."""
    return hasattr(model, "base_model_prefix") and hasattr(model, "config")


def is_timm_model(model: nn.Module) -> bool:
    """Whether the model says which module is its classifier, as timm's do."""
    return bool(pretrained_cfg(model)) or callable(getattr(model, "get_classifier", None))


def pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """timm's description of the checkpoint; models built directly from timm's classes have none."""
    config = getattr(model, "pretrained_cfg", None)
    return config if isinstance(config, dict) else {}


def known_models(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost models of timm and transformers inside a model, itself perhaps, with their names."""
    if is_timm_model(model) or is_transformers_model(model):
        yield prefix, model
        return
    for name, child in model.named_children():
        yield from known_models(child, join(prefix, name))


def join(prefix: str, name: str) -> str:
    """The full name of something within a module."""
    return f"{prefix}.{name}".strip(".")


def num_params(module: nn.Module) -> int:
    """Number of scalars in a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def weighted_children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children that hold parameters, in the order of their registration, which is mostly that of the calls."""
    return [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
