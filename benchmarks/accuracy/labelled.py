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
    """Examples of different content: the first of those whose pixels are the same."""
    found: dict[bytes, Example] = {}
    for example in examples:
        content = str(example.image.size).encode() + example.image.tobytes()
        found.setdefault(hashlib.sha256(content).digest(), example)
    return list(found.values())


def split(examples: Sequence[Example], sizes: Sequence[int], *, seed: int) -> list[list[Example]]:
    """Divide examples into splits, whole groups at a time.

    Groups come in random order; each goes to the split that is emptiest in relation to its size. A group that a split
    has no room for is cut short: what is over is left out, as it belongs nowhere else.

    Args:
        examples: Unique examples.
        sizes: Examples of each split; all together at most as many as there are.
        seed: Of the order.

    Returns:
        The splits, each in random order.
    """
    generator = np.random.default_rng(seed)
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.group].append(example)
    names = sorted(groups)
    splits: list[list[Example]] = [[] for _ in sizes]
    for number in generator.permutation(len(names)):
        fullness = [len(each) / size for each, size in zip(splits, sizes, strict=True)]
        emptiest = int(np.argmin(fullness))
        room = sizes[emptiest] - len(splits[emptiest])
        splits[emptiest] += groups[names[number]][:room]
    return [[each[index] for index in generator.permutation(len(each))] for each in splits]
