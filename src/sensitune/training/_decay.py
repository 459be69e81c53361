"""Which parameters weight decay leaves alone, and which have a learning rate of their own."""

from __future__ import annotations

from typing import Any

from torch import nn

from sensitune.errors import ArgumentError

# SPT's values that are stored as differences from the pretrained weights: decay would pull them back to those weights.
_DELTA_PARTS = frozenset({"spt_sparse", "spt_whole"})
_TOKENS = frozenset({"cls_token", "dist_token", "reg_token", "register_tokens", "distillation_token", "mask_token"})


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of the trained parameters that weight decay must not touch: 1-D tensors, tokens and sparse values.

    Args:
        model: The tuned model, or any module.

    Returns:
        Names as in ``model.named_parameters()``, trained parameters only.
    """
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.ndim <= 1 or not _TOKEN_OR_DELTA.isdisjoint(name.split(".")))
    }


_TOKEN_OR_DELTA = _DELTA_PARTS | _TOKENS


def parameter_groups(
    model: nn.Module, *, weight_decay: float, learning_rate: float | None = None, in_place_rate: float = 1.0
) -> list[dict[str, Any]]:
    """The trained parameters in the groups of an optimizer, in the model's order: with decay, without, in place.

    Args:
        model: The tuned model.
        weight_decay: Decay of the first group; the others have none.
        learning_rate: Of new weights (modules, head); needed where `in_place_rate` is not 1.
        in_place_rate: Learning rate of what SPT tunes in place (sparse values, whole vectors, tokens) as a multiple of
            `learning_rate`. With 1 they are in the second group.

    Returns:
        Groups for a `torch.optim.Optimizer`; a group without parameters is left out.

    Raises:
        ArgumentError: If `in_place_rate` is not 1 and `learning_rate` is missing.
    """
    if in_place_rate != 1.0 and learning_rate is None:
        raise ArgumentError(f"`in_place_rate` {in_place_rate} needs a `learning_rate`. Got None.")
    spared = no_weight_decay(model)
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "kept": [], "in place": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_place = in_place_rate != 1.0 and not _TOKEN_OR_DELTA.isdisjoint(name.split("."))
            groups["in place" if in_place else "kept" if name in spared else "decayed"].append(parameter)
    settings: dict[str, dict[str, Any]] = {
        "decayed": {"weight_decay": weight_decay},
        "kept": {"weight_decay": 0.0},
        "in place": {"weight_decay": 0.0, "lr": (learning_rate or 0.0) * in_place_rate},
    }
    return [{"params": each, **settings[kind]} for kind, each in groups.items() if each]
