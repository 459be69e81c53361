"""What there is to allocate by: the scores of each site, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sensitune.allocation._cost import Rules
from sensitune.errors import ArgumentError, NonFiniteError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline, Site

_ORIGIN = ("criterion", "num_batches", "num_samples", "model", "score_dtype", "seed", "versions")


@dataclass(frozen=True, eq=False)
class Problem:
    """Scores to allocate by, and the rules.

    Attributes:
        outline: The model.
        views: The scores of each ranked site, of its shape; gone through more than once.
        rules: What switches, when, and for how much.
        metadata: Passed on to the allocation.
        rule: Passed on to the allocation.
    """

    outline: ModelOutline
    views: Iterable[torch.Tensor]
    rules: Rules
    metadata: Mapping[str, Any]
    rule: str = "spt"

    def checked_views(self) -> Iterator[torch.Tensor]:
        """The views, each checked when its turn comes, so that a check costs no reading of its own.

        Yields:
            The scores of each ranked site.

        Raises:
            ArgumentError: If a score is negative.
            NonFiniteError: If a score is not finite.
        """
        for site, view in zip(self.outline.sites, self.views, strict=True):
            check_scores(site, view)
            yield view


class SiteScores(Iterable[torch.Tensor]):
    """The scores of each ranked site, of its shape, taken up one at a time: they may lie in a file on the disk."""

    def __init__(self, sensitivity: Sensitivity) -> None:
        self._sensitivity = sensitivity

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(self._sensitivity.score_of, self._sensitivity.sites)


def check_scores(site: Site, view: torch.Tensor) -> None:
    """Refuse scores that are negative or not finite."""
    low, high = (bound.item() for bound in torch.aminmax(view))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise NonFiniteError(f"A score of `{site.id}` is not a finite number. Estimate the sensitivity again.")
    if low < 0:
        raise ArgumentError(f"Scores must not be negative. Got {low} in `{site.id}`.")


def origin_of(sensitivity: Sensitivity) -> dict[str, Any]:
    """What an allocation passes on of where its sensitivity comes from."""
    return {name: sensitivity.metadata[name] for name in _ORIGIN if name in sensitivity.metadata}
