"""Which trained parameters weight decay leaves alone, and which have a learning rate of their own."""

from __future__ import annotations

from typing import Any

from torch import nn

from sensitune.errors import ArgumentError
from sensitune.sites import is_token
from sensitune.tuner import SptModel

# What SPT stores as a difference from the pretrained values: decay would pull those back to where they started.
_DELTAS = frozenset({"sparse", "whole"})


def parameter_groups(
    model: nn.Module, *, weight_decay: float, learning_rate: float | None = None, in_place_rate: float = 1.0
) -> list[dict[str, Any]]:
    """The trained parameters in the groups of an optimizer, in the model's order: with decay, without, in place.

    Weight decay leaves 1-D tensors and what is tuned in place alone.

    Args:
        model: The tuned model, or any module.
        weight_decay: Decay of the first group; the others have none.
        learning_rate: Of new weights (modules, head); needed where `in_place_rate` is not 1.
        in_place_rate: Learning rate of what is tuned in place (sparse values, whole vectors, tokens) as a multiple of
            `learning_rate`. With 1 they are in the second group.

    Returns:
        Groups for a `torch.optim.Optimizer`; a group without parameters is left out.

    Raises:
        ArgumentError: If `in_place_rate` is not 1 and `learning_rate` is missing.
    """
    if in_place_rate != 1.0 and learning_rate is None:
        raise ArgumentError(f"`in_place_rate` {in_place_rate} needs a `learning_rate`. Got None.")
    in_place = _tuned_in_place(model)
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "kept": [], "in place": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            own_rate = in_place_rate != 1.0 and parameter in in_place
            spared = parameter.ndim <= 1 or parameter in in_place
            groups["in place" if own_rate else "kept" if spared else "decayed"].append(parameter)
    settings: dict[str, dict[str, Any]] = {
        "decayed": {"weight_decay": weight_decay},
        "kept": {"weight_decay": 0.0},
        "in place": {"weight_decay": 0.0, "lr": (learning_rate or 0.0) * in_place_rate},
    }
    return [{"params": each, **settings[kind]} for kind, each in groups.items() if each]


def _tuned_in_place(model: nn.Module) -> set[nn.Parameter]:
    """Pretrained values that train: SPT's differences, as the tuner tells them, and tokens that train as they are."""
    tokens = {parameter for name, parameter in model.named_parameters() if is_token(name)}
    tuners = [module for module in model.modules() if isinstance(module, SptModel)]
    sites = [roles for tuner in tuners for name in tuner.peft_config for roles in tuner.site_parameters(name).values()]
    return tokens | {parameter for roles in sites for role, parameter in roles.items() if role in _DELTAS}
