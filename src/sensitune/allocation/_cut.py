"""The cut: the score from which on a scalar belongs to the k highest.

Tensors are read one after the other and never put together: memory is that of the largest tensor plus O(k).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Indices: TypeAlias = NDArray[np.int64]

# Below this size a partition is so fast that compacting the pool more often would cost more than it saves.
_MIN_POOL = 1 << 20
# Every 61st score tells roughly where a cut must lie; a prime, so that no column of a matrix is missed.
_SAMPLE_STEP = 61


@dataclass(frozen=True)
class Cut:
    """Everything above `value` is in, and the first `ties` scalars equal to it, in site order, then by lower index."""

    value: np.floating[Any]
    ties: int


def flat_array(scores: torch.Tensor) -> Floats:
    """The scores of a site as a flat array, row-major; a view wherever memory allows."""
    if scores.dtype in {torch.bfloat16, torch.float16}:
        scores = scores.float()  # exact, and numpy has no bfloat16
    array: Floats = scores.detach().reshape(-1).cpu().numpy()
    return array


def find_cut(views: Iterable[torch.Tensor], count: int, most: Iterable[int | None] = repeat(None)) -> Cut:
    """Where the `count` highest positive scores end.

    Args:
        views: Non-negative scores, any shapes; read once, one after the other.
        count: How many to take, at least 1. If fewer are positive, all of those are in.
        most: How many of each tensor's scores may be among them, its highest; None = any number.

    Returns:
        The cut. A score of zero is never above it.
    """
    pool: Floats = np.empty(0, np.float32)
    floor = pool.dtype.type(0)
    for view, limit in zip(views, most, strict=False):
        array = flat_array(view)
        # The pool already holds `count` scores of at least `floor`: nothing below can be above the cut.
        above = array[array > floor]
        pool = np.concatenate([pool, above if limit is None else _highest(above, limit)])
        if pool.size > 2 * count and pool.size > _MIN_POOL:
            pool = _highest(pool, count)
            floor = pool.min()
    if pool.size < count:
        return Cut(pool.dtype.type(0), 0)
    pool = _highest(pool, count)
    value = pool.min()
    return Cut(value, count - int(np.count_nonzero(pool > value)))


def _highest(array: Floats, count: int) -> Floats:
    """The `count` highest in any order; all of them if there are no more."""
    if array.size > _SAMPLE_STEP * count:
        # Of a sample, twice as many as must be expected above the cut: what is not above the last of them is rarely
        # needed, and if it is, too little is left and nothing was lost but time.
        sample = array[::_SAMPLE_STEP]
        likely = min(2 * (count // _SAMPLE_STEP) + 8, sample.size)
        above = array[array > np.partition(sample, sample.size - likely)[sample.size - likely]]
        array = above if above.size >= count else array
    return array if array.size <= count else np.partition(array, array.size - count)[array.size - count :]


def indices_above(views: Iterable[torch.Tensor], cut: Cut) -> Iterator[tuple[Indices, Floats]]:
    """Flat indices, ascending, and scores of what is above the cut, tensor by tensor."""
    ties = cut.ties
    for view in views:
        array = flat_array(view)
        indices = np.flatnonzero(array > cut.value)
        if ties:
            equal = np.flatnonzero(array == cut.value)[:ties]
            ties -= equal.size
            indices = np.sort(np.concatenate([indices, equal])) if equal.size else indices
        yield indices, array[indices]
