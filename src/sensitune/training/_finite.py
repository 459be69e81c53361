"""What a training that diverges is told: its loss, and at the end its weights, are finite, or it is no result."""

from __future__ import annotations

import math

import torch
from torch import nn

from sensitune.errors import NonFiniteError
from sensitune.training._sharding import gathered

WAY_OUT = "Lower `learning_rate`, set `clip_grad_norm`, or use `precision='float32'`."


def check_finite_loss(split: str, loss: float, when: str) -> None:
    """Refuse answers that are none.

    Args:
        split: What was evaluated.
        loss: Its loss.
        when: When, for the message.

    Raises:
        NonFiniteError: If the loss is not finite.
    """
    if not math.isfinite(loss):
        raise NonFiniteError(f"The {split} loss must be finite. Got {loss} {when}. {WAY_OUT}")


def check_finite_weights(model: nn.Module) -> None:
    """Refuse weights that the last step has broken, which no later loss would tell.

    Args:
        model: What was trained.

    Raises:
        NonFiniteError: If a trained value is not finite.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(gathered({name: parameter})[name]).all():
            raise NonFiniteError(f"The trained values must be finite. `{name}` is not, after the last step. {WAY_OUT}")
