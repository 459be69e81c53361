"""How sure an accuracy is: intervals of 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

_NORMAL = 1.959964
# Student's t at 97.5 %, for 1 to 30 degrees of freedom; the normal's is 4 % below the last.
_STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's interval of a share.

    Args:
        share: The share, from 0 to 1.
        count: Of how many images.

    Returns:
        Its ends.

    Source:
        Wilson, JASA 1927: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), z = 1.96.
    """
    squared = _NORMAL**2
    middle = share + squared / (2 * count)
    half = math.sqrt(squared * (share * (1 - share) / count + squared / (4 * count**2)))
    scale = 1 + squared / count
    return (middle - half) / scale, (middle + half) / scale


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's interval of the mean of independent values, such as one accuracy per seed.

    Args:
        values: At least two.

    Returns:
        Its ends; they may lie outside [0, 1].
    """
    student = _STUDENT[len(values) - 2] if len(values) - 2 < len(_STUDENT) else _NORMAL
    half = student * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half
