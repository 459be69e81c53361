"""The ranking: every scalar that a walk under a budget could ever pay for, most sensitive first.

A walk pays for a scalar only while its site is sparse. A site that can switch for P parameters either has switched,
after which its scalars are free, or was refused because less than P were left, so it never holds P paid scalars: its P
highest scores are enough, and the hundreds of thousands below them never need sorting. Sites that cannot switch share
what the budget can buy at most.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def rank_candidates(sites: Sequence[Site], views: Sequence[torch.Tensor], rules: Rules, max_paid: int) -> Ranking:
    """Rank what a walk could pay for.

    Args:
        sites: The ranked sites.
        views: The scores of each site, of its shape.
        rules: What switches, when, and for how much.
        max_paid: The most scalars that any of the walks could pay for one by one.

    Returns:
        The ranking; ties by site order, then by lower index.
    """
    found = _candidates(sites, views, rules, max_paid)
    counts = np.array([indices.size for indices, _ in found])
    score = np.concatenate([scores for _, scores in found])
    # Stable: candidates arrive in site order with ascending indices, which is how ties are ranked.
    order = np.argsort(-score, kind="stable")
    site = np.repeat(np.arange(len(sites), dtype=np.int32), counts)[order]
    index = np.concatenate([indices for indices, _ in found])[order]
    return Ranking(score[order], site, index, counts, _crossings(sites, rules, site, counts))


def _candidates(
    sites: Sequence[Site], views: Sequence[torch.Tensor], rules: Rules, max_paid: int
) -> list[tuple[Indices, Floats]]:
    sizes = [rules.switched_params(site) for site in sites]
    fixed = [view for view, size in zip(views, sizes, strict=True) if size is None]
    shared = indices_above(fixed, find_cut(fixed, max_paid))
    return [next(shared) if size is None else _highest(view, size) for view, size in zip(views, sizes, strict=True)]


def _highest(view: torch.Tensor, count: int) -> tuple[Indices, Floats]:
    cut = find_cut([view], count)
    return next(indices_above([view], cut))


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


def rank_of(views: Sequence[torch.Tensor], ranking: Ranking, position: int) -> int:
    """How many scalars of all sites rank at or above a candidate, those outside the ranking included."""
    cut = Cut(ranking.score[position], 0)
    number, index = int(ranking.site[position]), int(ranking.index[position])
    above = sum(int(np.count_nonzero(flat_array(view) > cut.value)) for view in views)
    tied = sum(int(np.count_nonzero(flat_array(view) == cut.value)) for view in views[:number])
    return above + tied + int(np.count_nonzero(flat_array(views[number])[: index + 1] == cut.value))
