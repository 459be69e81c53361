"""Which parts of a model work as in training and which as in evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft.utils import ModulesToSaveWrapper
from torch import nn

from sensitune.tuner import hold_statistics


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own training flag back afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def hold_frozen_parts(model: nn.Module, head: nn.Module | None) -> None:
    """Before a step: what is not trained works as it will when the model is used.

    Pretrained norms keep their running statistics, which an adapter folder does not hold. Where the head alone
    trains, drop-path and dropout before it have nothing to regularise and are off: the backbone works as in evaluation.

    Args:
        model: What the step runs, in training mode.
        head: The head, if it is all that trains.
    """
    if head is not None:
        model.eval()
        head.train()
    hold_statistics(model)


def moves_statistics(model: nn.Module) -> bool:
    """Whether a step changes buffers: running statistics of norms that are saved whole with the adapter.

    Args:
        model: What the step runs.

    Returns:
        True if so.
    """
    saved = [wrapper.modules_to_save for wrapper in model.modules() if isinstance(wrapper, ModulesToSaveWrapper)]
    return any(name.endswith(("running_mean", "running_var")) for each in saved for name, _ in each.named_buffers())
