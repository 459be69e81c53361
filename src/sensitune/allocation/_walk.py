"""Walk down the ranking until a budget is spent.

Between two crossings the cost only counts candidates of sites that are still sparse, so a walk takes one step per site,
not one per scalar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensitune.allocation._cost import Rules
from sensitune.allocation._ranking import Ranking
from sensitune.sites import Site


@dataclass(frozen=True, eq=False)
class Walk:
    """Where a walk ended.

    Attributes:
        is_sparse: ``[sites]`` False where the site has switched.
        stop: Number of candidates that were walked; the last of them cost something.
        left: What could not be spent.
    """

    is_sparse: NDArray[np.bool_]
    stop: int
    left: int


def usable_params(sites: Sequence[Site], rules: Rules, ranking: Ranking) -> int:
    """What a walk without a limit would cost."""
    switched = {number: _switched_params(sites, rules, number) for _, number in ranking.crossings}
    return sum(switched.get(number, int(count)) for number, count in enumerate(ranking.counts))


def walk(sites: Sequence[Site], rules: Rules, ranking: Ranking, params: int) -> Walk:
    """Spend `params` along the ranking.

    A scalar costs 1 while its site is sparse and nothing afterwards. A site that reaches its threshold switches if what
    is left pays for the difference; otherwise it stays sparse for good.

    Args:
        sites: The ranked sites.
        rules: What switches, when, and for how much.
        ranking: The candidates.
        params: What there is to spend.

    Returns:
        Where the walk ended. Its `left` is above zero if the ranking ended first.
    """
    is_sparse = np.ones(len(sites), dtype=bool)
    start, left = 0, params
    for position, number in ranking.crossings:
        cost = int(np.count_nonzero(is_sparse[ranking.site[start:position]]))
        if cost >= left:
            break
        start, left = position, left - cost
        # The site has paid for each of its scalars above this one.
        difference = _switched_params(sites, rules, number) - (rules.threshold(sites[number]) - 1)
        if difference <= left:
            is_sparse[number] = False
            start, left = position + 1, left - difference
    # No crossing lies between here and the end of the budget.
    paid = np.cumsum(is_sparse[ranking.site[start:]])
    bought = min(left, int(paid[-1]) if paid.size else 0)
    stop = start + int(np.searchsorted(paid, bought)) + 1 if bought else start
    return Walk(is_sparse, stop, left - bought)


def _switched_params(sites: Sequence[Site], rules: Rules, number: int) -> int:
    params = rules.switched_params(sites[number])
    assert params is not None, "only sites that can switch have a crossing"
    return params
