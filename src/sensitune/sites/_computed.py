"""Weights that a layer computes before it uses them: weight norm, spectral norm, pruning, any parametrization."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def computed_weights(model: nn.Module) -> dict[str, str]:
    """What weights are computed from.

    Neither the weight, which is no parameter, nor what it is computed from can be tuned as a weight is: a LoRA beside
    the layer has no merged form, and a parametrization is a list that would run what is added to it.

    Args:
        model: Any module.

    Returns:
        Name of a parameter, or of the module that holds such parameters -> how the weight comes about.
    """
    return {
        f"{prefix}.{name}".lstrip("."): reason
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, reason in _of_module(module)
    }


def _of_module(module: nn.Module) -> Iterator[tuple[str, str]]:
    if parametrize.is_parametrized(module):
        for tensor, steps in module.parametrizations.items():  # type: ignore[operator, union-attr]  # a ModuleDict
            by = " and ".join(type(step).__name__.lstrip("_") for step in steps)
            yield f"parametrizations.{tensor}", _reason(module, tensor, by)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            for part in ("g", "v", "orig"):
                yield f"{hook.name}_{part}", _reason(module, hook.name, type(hook).__name__)
        elif isinstance(hook, BasePruningMethod):
            yield f"{hook._tensor_name}_orig", _reason(module, hook._tensor_name, "pruning")


def _reason(module: nn.Module, tensor: str, by: str) -> str:
    return (
        f"the {type(module).__name__} computes its `{tensor}` by {by}. Make the result permanent to tune it "
        "(`remove_parametrizations`, `remove_weight_norm`, `remove_spectral_norm` or `prune.remove` of torch.nn.utils)"
    )
