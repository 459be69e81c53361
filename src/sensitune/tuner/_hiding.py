"""Run a layer with other values in the place of some of its parameters, and show them to nobody else."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

HIDING = threading.RLock()
"""Held while the parameters of a layer that somebody else holds (a hook) are hidden by other values."""


def run_hidden(
    base: nn.Module,
    changed: Mapping[str, torch.Tensor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    copied: bool,
) -> torch.Tensor:
    """Call a layer while attributes of the instance hide some of its parameters.

    Args:
        base: The layer.
        changed: Parameter name -> the value to use in this call.
        args: Arguments of the layer.
        kwargs: Keyword arguments of the layer.
        copied: Whether a copy that shares everything else runs in the layer's place; else `HIDING` must be held.

    Returns:
        The layer's output.
    """
    result: torch.Tensor
    if copied:
        shadow = copy.copy(base)
        vars(shadow).update(changed)
        result = shadow(*args, **kwargs)
        # What the layer noted on itself while it ran (a counter, a cache) is its own.
        vars(base).update({name: value for name, value in vars(shadow).items() if name not in changed})
        return result
    shown = vars(base)
    before = {name: shown[name] for name in changed if name in shown}
    shown.update(changed)
    try:
        result = base(*args, **kwargs)
    finally:
        for name in changed:
            del shown[name]
        shown.update(before)
    return result
