"""The criteria: small pure functions from weights and gradients to non-negative scores.

The package's docstring has their table. A criterion of gradients has two parts: what it adds up over the batches, one
term per sum it needs, and how it finishes once the sums are complete (over all processes). Each sum costs one tensor of
each parameter's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from sensitune.sites import Site

CriterionName: TypeAlias = Literal[
    "squared_gradient",
    "weight_gradient",
    "gradient_over_weight",
    "absolute_gradient_sum",
    "signal_to_noise",
    "normalised_squared_gradient",
    "magnitude",
    "random",
]
Scores: TypeAlias = Mapping[str, torch.Tensor]
Term: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Finish: TypeAlias = Callable[[Sequence[Scores], Sequence[Site]], Scores]
WeightCriterion: TypeAlias = Callable[[torch.Tensor, torch.Generator], torch.Tensor]

_SMALLEST_WEIGHT = 1e-8
# Of Σ g², below which the ratio goes to zero: the smallest number that float32 and bfloat16 hold in full precision.
_SMALLEST_SQUARE = torch.finfo(torch.float32).tiny
# Of a site's mean score, as a share of the median over the sites. Some true gradients are zero (of the keys' bias: a
# softmax ignores a shift) and leave rounding: 1e-14 of the median in float32 and 1e-6 in bfloat16 on a small ViT, whose
# least sensitive true site lies at 1e-3. Rounding must not be blown up to the size of a signal.
_SMALLEST_MEAN = 1e-5


@dataclass(frozen=True)
class GradientCriterion:
    """A score that comes of gradients.

    Attributes:
        terms: One function of a weight and its gradient per sum; its values are added up over the batches. They must
            not change what they are given.
        finish: From the sums, each parameter name -> tensor, and the ranked sites to the scores. May use up the sums.
        min_batches: Fewer batches than this would give every scalar the same score.
        reads_weight: Whether a term depends on the weight; else it may be given anything in its place.
    """

    terms: tuple[Term, ...]
    finish: Finish
    min_batches: int = 1
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


def unchanged(sums: Sequence[Scores], sites: Sequence[Site]) -> Scores:
    """The one sum is the score."""
    del sites
    return sums[0]


def absolute(sums: Sequence[Scores], sites: Sequence[Site]) -> Scores:
    """The absolute value of the one sum."""
    del sites
    return {name: total.abs_() for name, total in sums[0].items()}


def signal_to_noise(sums: Sequence[Scores], sites: Sequence[Site]) -> Scores:
    """(Σg)² / Σg² from the sums of g and of g²; zero where both are, next to zero where Σg² is below 1.2e-38.

    By Cauchy and Schwarz it lies between 0 (the batches cancel) and their number (they agree), up to rounding. Taken as
    the square of a quotient, because the square of a small sum would leave the range of float32.

    Args:
        sums: Those of g and of g²; used up.
        sites: Not needed.

    Returns:
        Parameter name -> score.
    """
    del sites
    totals, squares = sums
    return {
        name: total.div_(squares[name].clamp_(min=_SMALLEST_SQUARE).sqrt_()).square_() for name, total in totals.items()
    }


def over_site_mean(sums: Sequence[Scores], sites: Sequence[Site]) -> Scores:
    """Each site's scores divided by their mean, which is the variance of its gradients around zero, B-fold.

    By site and not by parameter, so that a fused projection ranks as q, k and v apart do. The mean counts as at least
    1e-5 of the median over the sites: what lies below is rounding, and keeps a small score. Entries of a parameter that
    belong to no site are never ranked and stay as they are.

    Args:
        sums: The one of g²; used up.
        sites: The ranked sites.

    Returns:
        Parameter name -> score.
    """
    scores = sums[0]
    views = [site.of(scores[site.parameter]) for site in sites]
    means = torch.stack([view.mean(dtype=torch.promote_types(view.dtype, torch.float32)).cpu() for view in views])
    floor = (means[means > 0].median() if bool(means.any()) else torch.ones(())) * _SMALLEST_MEAN
    for view, mean in zip(views, means.clamp(min=float(floor)).tolist(), strict=True):
        view.div_(mean)
    return scores


def magnitude(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """|w|."""
    del generator
    return weight.abs()


def random(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Uniform in (0, 1]: never zero, because a score of zero is never selected."""
    return 1 - torch.rand(weight.shape, generator=generator)


GRADIENT_CRITERIA: dict[CriterionName, GradientCriterion] = {
    "squared_gradient": GradientCriterion((squared_gradient,), unchanged),
    "weight_gradient": GradientCriterion((weight_gradient,), unchanged, reads_weight=True),
    "gradient_over_weight": GradientCriterion((gradient_over_weight,), unchanged, reads_weight=True),
    "absolute_gradient_sum": GradientCriterion((plain_gradient,), absolute),
    "signal_to_noise": GradientCriterion((plain_gradient, squared_gradient), signal_to_noise, min_batches=2),
    "normalised_squared_gradient": GradientCriterion((squared_gradient,), over_site_mean),
}
WEIGHT_CRITERIA: dict[CriterionName, WeightCriterion] = {"magnitude": magnitude, "random": random}
CRITERIA: dict[CriterionName, GradientCriterion | WeightCriterion] = {**GRADIENT_CRITERIA, **WEIGHT_CRITERIA}
