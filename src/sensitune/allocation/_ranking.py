"""The ranking: every scalar that a walk under a budget could ever pay for, most sensitive first.

Two bounds keep it small, whatever the size of the model:

- A walk pays for a scalar only while its site is sparse. A site that can switch for P parameters either has switched,
  after which its scalars are free, or was refused because less than P were left, so it never holds P paid scalars: its
  P highest scores are enough.
- Down to a score v, a site with c scalars at or above v and threshold t has cost at least min(c, t): it pays for each
  of them while it is sparse, and P ≥ t once it has switched. Where these add up to the budget, every walk has ended:
  nothing below that score, the *floor*, is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sensitune.allocation._cost import Rules
from sensitune.allocation._cut import Cut, Floats, Indices, find_cut, flat_array, indices_above
from sensitune.sites import Site


@dataclass(frozen=True, eq=False)
class Ranking:
    """Candidates in ranking order, and when each site switches.

    Attributes:
        score: ``[M]`` scores, descending.
        site: ``[M]`` index of the candidate's site.
        index: ``[M]`` flat index within the site.
        counts: ``[sites]`` candidates per site.
        crossings: ``(position in the ranking, site)`` in order of position: the candidate with which the site's count
            reaches its threshold.
    """

    score: Floats
    site: NDArray[np.int32]
    index: Indices
    counts: NDArray[np.int64]
    crossings: tuple[tuple[int, int], ...]


def ranking_floor(sites: Sequence[Site], views: Iterable[torch.Tensor], rules: Rules, max_paid: int) -> Cut:
    """The score below which no walk goes; see the module's text.

    Args:
        sites: The ranked sites.
        views: The scores of each site, of its shape; read once, one after the other.
        rules: What switches, when, and for how much.
        max_paid: What there is to spend.

    Returns:
        The floor; zero if a walk may read everything.
    """
    thresholds = (None if rules.switched_params(site) is None else rules.threshold(site) for site in sites)
    return find_cut(views, max_paid, thresholds)


def rank_candidates(
    sites: Sequence[Site], views: Iterable[torch.Tensor], rules: Rules, max_paid: int, floor: Cut
) -> Ranking:
    """Rank what a walk could pay for.

    Args:
        sites: The ranked sites.
        views: The scores of each site, of its shape; read once, one after the other.
        rules: What switches, when, and for how much.
        max_paid: What there is to spend.
        floor: From `ranking_floor` for the same `max_paid`.

    Returns:
        The ranking; ties by site order, then by lower index.
    """
    sizes = (rules.switched_params(site) for site in sites)
    found = [
        _candidates(view, max_paid if size is None else size, floor) for view, size in zip(views, sizes, strict=True)
    ]
    counts = np.array([indices.size for indices, _ in found])
    score = np.concatenate([scores for _, scores in found])
    # Stable: candidates arrive in site order with ascending indices, which is how ties are ranked.
    order = np.argsort(-score, kind="stable")
    site = np.repeat(np.arange(len(sites), dtype=np.int32), counts)[order]
    index = np.concatenate([indices for indices, _ in found])[order]
    return Ranking(score[order], site, index, counts, _crossings(sites, rules, site, counts))


def _candidates(view: torch.Tensor, most: int, floor: Cut) -> tuple[Indices, Floats]:
    """Flat indices, ascending, and scores of the `most` highest that are positive and not below the floor."""
    if not floor.value:
        return next(indices_above([view], find_cut([view], most)))
    array = flat_array(view)
    indices = np.flatnonzero(array >= floor.value)
    scores = array[indices]
    if indices.size > most:
        found = torch.from_numpy(scores)
        chosen, scores = next(indices_above([found], find_cut([found], most)))
        indices = indices[chosen]
    return indices, scores


def _crossings(
    sites: Sequence[Site], rules: Rules, site: NDArray[np.int32], counts: NDArray[np.int64]
) -> tuple[tuple[int, int], ...]:
    by_site = np.argsort(site, kind="stable")  # positions in the ranking, grouped by site
    first = np.cumsum(counts) - counts
    crossings = []
    for number, one in enumerate(sites):
        if rules.switched_params(one) is not None and counts[number] >= rules.threshold(one):
            crossings.append((int(by_site[first[number] + rules.threshold(one) - 1]), number))
    return tuple(sorted(crossings))


def ranks_of(views: Iterable[torch.Tensor], ranking: Ranking, positions: Sequence[int]) -> list[int]:
    """How many scalars of all sites rank at or above candidates, those outside the ranking included.

    Args:
        views: The scores of each site, of its shape; read once, one after the other.
        ranking: The candidates.
        positions: Which of them.

    Returns:
        The rank of each, from 1.
    """
    places = [(ranking.score[one], int(ranking.site[one]), int(ranking.index[one])) for one in positions]
    ranks = [0] * len(places)
    if not places:
        return ranks
    least = min(score for score, _, _ in places)
    for number, view in enumerate(views):
        array = flat_array(view)
        high = np.flatnonzero(array >= least)
        scores = array[high]
        for rank, (score, site, index) in enumerate(places):
            ranks[rank] += int(np.count_nonzero(scores > score))
            if number <= site:  # ties go by site order, then by lower index
                ranks[rank] += int(np.count_nonzero((scores == score) & ((high <= index) | (number < site))))
    return ranks
