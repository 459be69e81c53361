"""Seeded, stratified selections: every class keeps its share."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar


class Labelled(Protocol):
    """Anything with a class id."""

    @property
    def label(self) -> int:
        """The class id."""


class Row(NamedTuple):
    """A row of a data set, by its position, and its class id."""

    position: int
    label: int


T = TypeVar("T")
L = TypeVar("L", bound=Labelled)


def apportion(counts: Sequence[int], size: int, *, at_least: int = 0) -> list[int]:
    """Divide `size` places among groups in proportion to their counts, by largest remainders.

    Every group first gets `at_least` places (or all it can fill); the rest goes by
    ``share_i = rest * left_i / sum(left)``, rounded down, and one more to the groups with the largest remainders.

    Args:
        counts: How many places each group can fill.
        size: Places to give, at most ``sum(counts)``.
        at_least: Places that every group gets first.

    Returns:
        Places per group; they sum to `size`, and none exceeds its group's count.
    """
    places = [min(count, at_least) for count in counts]
    left = [count - place for count, place in zip(counts, places, strict=True)]
    rest, total = size - sum(places), max(sum(left), 1)
    shares = [divmod(rest * each, total) for each in left]
    extra = rest - sum(share for share, _ in shares)
    by_remainder = sorted(range(len(counts)), key=lambda group: (-shares[group][1], group))
    for group, (share, _) in enumerate(shares):
        places[group] += share
    for group in by_remainder[:extra]:
        places[group] += 1
    return places


def take_stratified(
    files: Sequence[L], size: int, *, seed: int, leave: int = 0, at_least: int = 0
) -> tuple[list[L], list[L]]:
    """Draw files at random so that every class keeps its share.

    Args:
        files: What to draw from.
        size: How many to draw; fewer are drawn where `leave` forbids more.
        seed: Of the draw.
        leave: Files of every class that stay behind.
        at_least: Files of every class that are drawn first.

    Returns:
        The drawn files and the rest, each in the order of `files`.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, file in enumerate(files):
        members[file.label].append(index)
    groups = [members[label] for label in sorted(members)]
    free = [max(len(group) - leave, 0) for group in groups]
    generator = random.Random(seed)
    taken: set[int] = set()
    for group, places in zip(groups, apportion(free, min(size, sum(free)), at_least=at_least), strict=True):
        taken.update(generator.sample(group, places))
    return (
        [file for index, file in enumerate(files) if index in taken],
        [file for index, file in enumerate(files) if index not in taken],
    )


def shuffled(files: Sequence[T], *, seed: int) -> list[T]:
    """The files in a random order, so that the first batches of a training split hold every class."""
    return random.Random(seed).sample(list(files), len(files))
