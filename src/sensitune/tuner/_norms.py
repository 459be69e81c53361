"""Running statistics of batch norms: an adapter does not hold them, so they stay as pretrained while it trains."""

from __future__ import annotations

import logging

from peft.utils import ModulesToSaveWrapper
from torch import nn

_LOGGER = logging.getLogger(__name__)


def hold_statistics(model: nn.Module) -> list[str]:
    """Let every norm with running statistics work as in evaluation, but for copies that are saved with an adapter.

    Args:
        model: The model, in training mode or not.

    Returns:
        Names of the norms that were in training mode.
    """
    held = moving_statistics(model)
    for name in held:
        model.get_submodule(name).training = False  # not `eval()`: some have dropout or an activation inside
    return held


def moving_statistics(model: nn.Module) -> list[str]:
    """Names of the norms whose running statistics the next forward would change, and no adapter would hold."""
    moving = {name: module for name, module in model.named_modules() if module.training and _has_statistics(module)}
    if not moving:
        return []
    wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    saved = {module for wrapper in wrappers for module in wrapper.modules_to_save.modules()}
    return [name for name, module in moving.items() if module not in saved]


def warn_of_held(names: list[str]) -> None:
    """Say once that norms will not adapt their statistics."""
    if names:
        _LOGGER.warning(
            "`%s`%s: running statistics stay as pretrained while the adapter trains, as an adapter does not hold them. "
            "Name a norm in `modules_to_save` to train it whole and save it.",
            names[0],
            _others(names),
        )


def warn_of_moving(names: list[str]) -> None:
    """Say once that norms adapt statistics that will be lost."""
    if names:
        _LOGGER.warning(
            "`%s`%s: running statistics move in training, and the adapter will not hold them, so that it gives other "
            "outputs once loaded. Set these norms to `eval()`, or name them in `modules_to_save`.",
            names[0],
            _others(names),
        )


def _others(names: list[str]) -> str:
    return f" and {len(names) - 1} more norms" if len(names) > 1 else ""


def _has_statistics(module: nn.Module) -> bool:
    buffers = module._buffers
    return bool(buffers) and any(buffers.get(name) is not None for name in ("running_mean", "running_var"))
