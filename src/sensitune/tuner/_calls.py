"""A tuned layer that the model never uses cannot learn: the first training forward finds it and says so.

A layer is used if it is called, or if another module computes with its weight. Two one-shot hooks on the model look out
for that; after the first training forward they are gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sensitune.errors import ModelError
from sensitune.tuner._norms import moving_statistics, warn_of_moving
from sensitune.tuner._wrapper import SptWrapper


class CallWatch:
    """Watches one training forward of a model and raises for every tuned layer that it did not call."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._layer_handles: list[Any] = []
        self._called: set[int] = set()

    def arm(self, model: nn.Module) -> None:
        """Watch the next training forward of `model`.

        Args:
            model: The model that holds the tuned layers; the hooks sit on it, since it is often called directly.
        """
        self.disarm()
        self._handles = [model.register_forward_pre_hook(self._start), model.register_forward_hook(self._finish)]

    def disarm(self) -> None:
        """Take all hooks away."""
        for handle in (*self._handles, *self._layer_handles):
            handle.remove()
        self._handles, self._layer_handles = [], []

    def _start(self, model: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or not model.training:  # hooks that come and go do not fit into a graph
            return
        if any(_is_compiled(module) for module in model.modules()):
            self.disarm()  # a compiled part does not run Python hooks that are added now
            return
        for handle in self._layer_handles:  # of a forward that failed half-way
            handle.remove()
        warn_of_moving(moving_statistics(model))  # the model may have been set to training mode around `SptModel`
        self._called = set()
        layers = [layer for _, layer in _trained_layers(model)]
        for layer in layers:
            layer.weight_was_read = False
        self._layer_handles = [layer.register_forward_pre_hook(self._record) for layer in layers]

    def _record(self, layer: nn.Module, args: Any) -> None:
        self._called.add(id(layer))

    def _finish(self, model: nn.Module, args: Any, output: Any) -> None:
        if not self._layer_handles:
            return
        self.disarm()
        missed = [
            name
            for name, layer in _trained_layers(model)
            if id(layer) not in self._called and not layer.weight_was_read
        ]
        if missed:
            others = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
            raise ModelError(
                f"`{missed[0]}`{others} is tuned, but the first training forward never called it, so it cannot learn. "
                "Leave it out with `exclude` or `exclude_modules`. For a model that skips layers at random, set "
                "`check_calls=False` in the configuration."
            )


def stop_watching(model: nn.Module) -> None:
    """Take every watch's hooks away.

    Args:
        model: The model that `CallWatch.arm` was called with.
    """
    for hook in (*model._forward_pre_hooks.values(), *model._forward_hooks.values()):
        watch = getattr(hook, "__self__", None)
        if isinstance(watch, CallWatch):
            watch.disarm()


def _trained_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The wrapped layers with an applied adapter that trains; exposed tensors are read, not called."""
    for name, module in model.named_modules():
        if not isinstance(module, SptWrapper) or not module.applied_adapters():
            continue
        containers = [getattr(module, container) for container in module.adapter_layer_names]
        if any(parameter.requires_grad for container in containers for parameter in container.parameters()):
            yield name, module


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
