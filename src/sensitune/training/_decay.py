"""Which parameters weight decay leaves alone."""

from __future__ import annotations

from typing import Any

from torch import nn

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


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters in the two groups of an optimizer, with and without decay, in the model's order.

    Args:
        model: The tuned model.
        weight_decay: Decay of the first group; the second has none.

    Returns:
        Groups for a `torch.optim.Optimizer`; a group without parameters is left out.
    """
    spared = no_weight_decay(model)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if name not in spared]
    kept = [parameter for name, parameter in trained if name in spared]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
