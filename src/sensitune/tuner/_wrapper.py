"""What tuned linear layers and convolutions have in common: they stand around a layer and answer for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from sensitune.tuner._layer import SptLayer
from sensitune.tuner._reading import read


class SptWrapper(SptLayer, nn.Module):
    """A layer around another one, in its place: whoever asks it for an attribute of that one gets it."""

    base_layer: nn.Module
    weight_was_read: bool = False
    """Whether something computed with a tuned parameter of this layer without calling it."""

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self.init_containers()
        self._active_adapter = [adapter_name]

    @property
    def weight(self) -> torch.Tensor:
        """The weight as the layer computes with it, for those who read it instead of calling the layer."""
        return cast("torch.Tensor", read(self, "weight"))

    @property
    def bias(self) -> torch.Tensor | None:  # type: ignore[override]  # PEFT forgets that a layer may have none
        """The bias as the layer computes with it."""
        return read(self, "bias")

    def __getattr__(self, name: str) -> Any:
        """Public attributes of the layer inside (``stride``, ``kernel_size``, ...) where this one has none of the name.

        Args:
            name: The attribute.

        Returns:
            Its value.

        Raises:
            AttributeError: If neither has it.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = vars(self).get("_modules", {}).get("base_layer")
            if base is None or name.startswith("_") or hasattr(type(self), name):
                raise
            return getattr(base, name)

    def changes(self, name: str) -> bool:
        """Whether an applied adapter changes the parameter `name`."""
        forms = ("lora", "adapter", "sparse", "whole")
        return any(plan.name == name for _, _, plan in self.active_slots(*forms))

    def computed_with(self, name: str) -> torch.Tensor:
        """The parameter `name` with every change of the applied adapters, that of LoRAs too, differentiably."""
        adapters: Sequence[str] = self.applied_adapters()
        with self.undisturbed():
            value = self.effective(name, adapters)
        for adapter, slot, plan in self.active_slots("lora", adapters=adapters):
            if plan.name == name and plan.form not in self.weight_forms:
                value = value + self.delta(adapter, slot, value)
        return value

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
        """The layer's output with another bias; None where the layer is more than a linear product."""
        return None
