"""The criteria: small pure functions from a weight and its gradient to a non-negative score.

With g the gradient of one batch's mean loss and w the weight, the contributions of the batches add up:

===================== ==================== ===================================================================
criterion             contribution         idea
===================== ==================== ===================================================================
``squared_gradient``  g²                   loss drop of one gradient step on this scalar alone (SPT, eq. 4)
``weight_gradient``   |w·g|                loss change if the scalar were set to zero (Molchanov et al., CVPR 2019)
``gradient_over_weight`` |g| / max(|w|, ε) change relative to the scalar's size, ε = 1e-8
``magnitude``         |w|                  no data
``random``            uniform in (0, 1]    no data; what a choice without information costs
===================== ==================== ===================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

GradientCriterion: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WeightCriterion: TypeAlias = Callable[[torch.Tensor, torch.Generator], torch.Tensor]

_SMALLEST_WEIGHT = 1e-8


def squared_gradient(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """g²: to first order proportional to the loss drop of one gradient step on the scalar alone."""
    del weight
    return gradient.square()


def weight_gradient(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """|w·g|: to first order the change of the loss if the scalar were zero."""
    return (weight * gradient).abs_()


def gradient_over_weight(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """|g| / max(|w|, 1e-8): large where a step changes the scalar most, relative to its size."""
    return gradient.abs().div_(weight.abs().clamp_(min=_SMALLEST_WEIGHT))


def magnitude(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """|w|."""
    del generator
    return weight.abs()


def random(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Uniform in (0, 1]: never zero, because a score of zero is never selected."""
    return 1 - torch.rand(weight.shape, generator=generator)


GRADIENT_CRITERIA: dict[str, GradientCriterion] = {
    "squared_gradient": squared_gradient,
    "weight_gradient": weight_gradient,
    "gradient_over_weight": gradient_over_weight,
}
WEIGHT_CRITERIA: dict[str, WeightCriterion] = {"magnitude": magnitude, "random": random}
CRITERIA: dict[str, GradientCriterion | WeightCriterion] = {**GRADIENT_CRITERIA, **WEIGHT_CRITERIA}
