"""The criteria: small pure functions from weights and gradients to non-negative scores.

The package's docstring has their table. A criterion of gradients has two parts: what it adds up over the batches, a
tensor of each parameter's shape, and how it finishes once the sums are complete (over all processes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

CriterionName: TypeAlias = Literal[
    "squared_gradient",
    "weight_gradient",
    "gradient_over_weight",
    "absolute_gradient_sum",
    "magnitude",
    "random",
]
Term: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Finish: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
WeightCriterion: TypeAlias = Callable[[torch.Tensor, torch.Generator], torch.Tensor]

_SMALLEST_WEIGHT = 1e-8


@dataclass(frozen=True)
class GradientCriterion:
    """A score that comes of gradients.

    Attributes:
        term: A function of a weight and its gradient, whose values are added up over the batches. It must not change
            what it is given.
        finish: From a parameter's sum to its score. May use up the sum.
        reads_weight: Whether the term depends on the weight; else it may be given anything in its place.
    """

    term: Term
    finish: Finish
    reads_weight: bool = False


def plain_gradient(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient itself."""
    del weight
    return gradient


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


def unchanged(total: torch.Tensor) -> torch.Tensor:
    """The sum is the score."""
    return total


def magnitude(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """|w|."""
    del generator
    return weight.abs()


def random(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Uniform in (0, 1]: never zero, because a score of zero is never selected."""
    return 1 - torch.rand(weight.shape, generator=generator)


GRADIENT_CRITERIA: dict[CriterionName, GradientCriterion] = {
    "squared_gradient": GradientCriterion(squared_gradient, unchanged),
    "weight_gradient": GradientCriterion(weight_gradient, unchanged, reads_weight=True),
    "gradient_over_weight": GradientCriterion(gradient_over_weight, unchanged, reads_weight=True),
    "absolute_gradient_sum": GradientCriterion(plain_gradient, torch.Tensor.abs_),
}
WEIGHT_CRITERIA: dict[CriterionName, WeightCriterion] = {"magnitude": magnitude, "random": random}
CRITERIA: dict[CriterionName, GradientCriterion | WeightCriterion] = {**GRADIENT_CRITERIA, **WEIGHT_CRITERIA}
