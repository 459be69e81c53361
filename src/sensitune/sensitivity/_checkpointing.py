"""Activation checkpointing in a pass that runs in eval mode, where transformers would leave it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def keep_checkpointing(model: nn.Module) -> None:
    """Have transformers' layers that checkpoint in training do so in eval mode, their insides in eval mode as well.

    Their own training flag says whether to checkpoint, and whether to drop: it is True where they ask the first, False
    where they ask the second. Flags and functions are to be put back by whoever has borrowed the model.

    Args:
        model: A model in eval mode.
    """
    for module in model.modules():
        function = vars(module).get("_gradient_checkpointing_func")
        if function is not None and getattr(module, "gradient_checkpointing", False) and not module.training:
            module.training = True
            vars(module)["_gradient_checkpointing_func"] = _in_eval_mode(module, function)


def _in_eval_mode(module: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    def checkpoint(run: Callable[..., Any], *args: Any) -> Any:
        def quietly(*args: Any) -> Any:
            module.training = False
            try:
                return run(*args)
            finally:
                module.training = True

        return function(quietly, *args)

    return checkpoint
