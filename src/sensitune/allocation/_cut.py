"""The cut: the score from which on a scalar belongs to the k highest.

Tensors are read one after the other and never put together: memory is that of the largest tensor plus O(k).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Indices: TypeAlias = NDArray[np.int64]

# Below this size a partition is so fast that compacting the pool more often would cost more than it saves.
_MIN_POOL = 1 << 20


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


def find_cut(views: Iterable[torch.Tensor], count: int) -> Cut:
    """Where the `count` highest positive scores end.

    Args:
        views: Non-negative scores, any shapes.
        count: How many to take, at least 1. If fewer are positive, all of those are in.

    Returns:
        The cut. A score of zero is never above it.
    """
    pool: Floats = np.empty(0, np.float32)
    floor = pool.dtype.type(0)
    for view in views:
        array = flat_array(view)
        # The pool already holds `count` scores of at least `floor`: nothing below can be above the cut.
        pool = np.concatenate([pool, array[array > floor]])
        if pool.size > 2 * count and pool.size > _MIN_POOL:
            pool = np.partition(pool, pool.size - count)[pool.size - count :]
            floor = pool[0]
    if pool.size < count:
        return Cut(pool.dtype.type(0), 0)
    value = np.partition(pool, pool.size - count)[pool.size - count]
    return Cut(value, count - int(np.count_nonzero(pool > value)))


def indices_above(views: Sequence[torch.Tensor], cut: Cut) -> Iterator[tuple[Indices, Floats]]:
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
