"""What a module with tuned parameters keeps from one call to the next must not outlive the values it was made from.

LeViT keeps its attention biases in evaluation, torch's RNNs the list of their weights. A forward of such a module runs
on a copy that shares everything else and whose caches start empty: nothing is out of date after a step, a switch, a
merge or disabling, no graph stays alive, and threads do not meet.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from sensitune.sites import empty_caches, forget_caches

_OF_RNNS = ("_flat_weights", "_flat_weight_refs")


def keeps_notes(module: nn.Module) -> bool:
    """Whether a module keeps what it computes from its parameters."""
    return isinstance(module, nn.RNNBase) or bool(empty_caches(module))


def run_without_notes(plain: type[nn.Module], owner: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A module's forward with nothing kept from before, and keeping nothing.

    Args:
        plain: The class whose forward it is.
        owner: The module.
        *args: Passed on.
        **kwargs: Passed on.

    Returns:
        What the forward returns.
    """
    if torch.compiler.is_compiling():
        return plain.forward(owner, *args, **kwargs)
    copied = object.__new__(type(owner))
    kept = empty_caches(owner)
    vars(copied).update(vars(owner) | kept)
    if isinstance(owner, nn.RNNBase):
        kept |= dict.fromkeys(_OF_RNNS)
    result = plain.forward(copied, *args, **kwargs)
    # Whatever else it noted on itself (a counter, a map to look at) is its own.
    vars(owner).update({name: value for name, value in vars(copied).items() if name not in kept})
    return result


def state_without_notes(owner: nn.Module) -> dict[str, Any]:
    """A module's attributes as `copy.deepcopy` and `pickle` can take them: an RNN lists its base parameters."""
    state = dict(vars(owner))
    if isinstance(owner, nn.RNNBase):
        state["_flat_weights"] = [owner._parameters.get(name) for name in owner._flat_weights_names]
        state.pop("_flat_weight_refs", None)  # torch makes them again
    return state


def refresh(model: nn.Module) -> None:
    """After a change of what the model computes with: nothing that was kept from before is used again.

    Modules that prepare something when they are switched to evaluation (``train`` of their own) prepare it again.

    Args:
        model: The model.
    """
    forget_caches(model)
    flags = [(module, module.training) for module in model.modules()]
    prepared = [(module, flag) for module, flag in flags if type(module).train is not nn.Module.train]
    for module, flag in prepared:
        module.train(flag)
    if prepared:
        for module, flag in flags:
            module.training = flag


def refreshing(change: Any) -> Any:
    """A method of a tuner, of PEFT's own, after which the model computes with other values.

    Args:
        change: The method.

    Returns:
        The method, with `refresh` after it.
    """

    @functools.wraps(change)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return change(self, *args, **kwargs)
        finally:
            refresh(self.model)

    return method
