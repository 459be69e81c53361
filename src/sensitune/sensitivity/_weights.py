"""The weights that are scored, as the model computes with them, however they are stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from sensitune.errors import ModelError
from sensitune.sites import as_computed, dequantised_weight, quantised_kind, repacked_by


@dataclass(frozen=True, eq=False)
class Weight:
    """A scored parameter.

    Attributes:
        name: Its full name.
        owner: The module that holds it.
        parameter: As stored.
        shape: That of its scores.
    """

    name: str
    owner: nn.Module
    parameter: nn.Parameter
    shape: torch.Size

    @property
    def device(self) -> torch.device:
        """Where its scores are kept, if nobody says otherwise; those of an offloaded one are on the CPU."""
        return torch.device("cpu") if self.parameter.is_meta else self.parameter.device

    def value(self) -> torch.Tensor:
        """The values that the model computes with.

        Returns:
            The parameter; of a quantised one a new tensor.

        Raises:
            ModelError: If they are not at hand.
        """
        if self.name.endswith("weight") and quantised_kind(self.owner) is not None:
            return dequantised_weight(self.owner)
        if self.parameter.is_meta:
            raise ModelError(
                f"`{self.name}` is offloaded and not at hand when its gradient is, so no criterion can read it. Choose "
                "one that reads the gradients alone, such as 'squared_gradient', or load the model whole."
            )
        return self.parameter.detach()


def weights_of(model: nn.Module, names: Iterable[str]) -> dict[str, Weight]:
    """What is scored.

    Args:
        model: The model.
        names: Names of parameters.

    Returns:
        Name -> weight, each name once.

    Raises:
        ModelError: If no gradient comes through a quantised layer of the model any more.
    """
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if reason := repacked_by(module):
            raise ModelError(f"`{name}` {reason}.")
    found = {}
    for name in dict.fromkeys(names):
        module_name, _, own = name.rpartition(".")
        owner = modules[module_name]
        parameter, seen = owner._parameters[own], as_computed(owner, own)
        assert parameter is not None
        assert seen is not None
        found[name] = Weight(name, owner, parameter, seen.shape)
    return found
