"""An example of a task, and how examples become splits that do not leak into one another."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 128  # the longer side of a stored picture: the models see 98 pixels


@dataclass(frozen=True)
class Example:
    """A labelled picture.

    Attributes:
        image: RGB.
        label: Name of its class.
        group: What it must share a split with: the same character in two fonts, the same emoji by two artists.
    """

    image: Image.Image
    label: str
    group: str


def flattened(image: Image.Image, *, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """A picture with transparency on a plain background, in RGB, no larger than `SIDE`."""
    layered = image.convert("RGBA")
    layered.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    plain = Image.new("RGBA", layered.size, (*background, 255))
    plain.alpha_composite(layered)
    return plain.convert("RGB")


def unique(examples: Iterable[Example]) -> list[Example]:
    """Examples of different content: the first of those whose pixels are the same, none where their labels differ."""
    found: dict[bytes, list[Example]] = defaultdict(list)
    for example in examples:
        content = str(example.image.size).encode() + example.image.tobytes()
        found[hashlib.sha256(content).digest()].append(example)
    return [same[0] for same in found.values() if len({each.label for each in same}) == 1]


def split(examples: Sequence[Example], sizes: Sequence[int], *, seed: int) -> list[list[Example]]:
    """Divide examples into splits, whole groups at a time, every class with its share.

    A class's share of a split is its share of all examples. Groups come in random order and fill the splits one after
    another; a group that a split has no room for is cut short: what is over is left out, as it belongs nowhere else.

    Args:
        examples: Unique examples; a group's are of one class.
        sizes: Examples of each split; all together at most as many as there are.
        seed: Of the order.

    Returns:
        The splits, each in random order.
    """
    generator = np.random.default_rng(seed)
    classes: dict[str, dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for example in examples:
        classes[example.label][example.group].append(example)
    names = sorted(classes)
    counts = [sum(map(len, classes[name].values())) for name in names]
    wanted = [apportion(counts, size) for size in sizes]
    splits: list[list[Example]] = [[] for _ in sizes]
    for number, name in enumerate(names):
        groups = [classes[name][each] for each in sorted(classes[name])]
        order = [groups[index] for index in generator.permutation(len(groups))]
        for part, quotas in zip(splits, wanted, strict=True):
            part += _draw(order, quotas[number])
    return [[each[index] for index in generator.permutation(len(each))] for each in splits]


def apportion(counts: Sequence[int], size: int) -> list[int]:
    """Places in proportion to counts, by largest remainders."""
    shares = [divmod(count * size, sum(counts)) for count in counts]
    places = [share for share, _ in shares]
    for index in sorted(range(len(counts)), key=lambda each: -shares[each][1])[: size - sum(places)]:
        places[index] += 1
    return places


def _draw(groups: list[list[Example]], quota: int) -> list[Example]:
    """Take groups off the end of the list until there are `quota` examples."""
    drawn: list[Example] = []
    while groups and len(drawn) < quota:
        drawn += groups.pop()
    return drawn[:quota]
