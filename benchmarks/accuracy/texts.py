"""Three text classification tasks from packages, none of which is committed: see LICENCES.md."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from packages import CHATTERBOT, FORTUNES, GOOGLE, fetch

Texts = Mapping[str, list[str]]
"""Class -> its different texts."""
MOST = 90
"""Texts of a class that are used."""
# Files of the package that are about something, in words that are fit to be read by anyone.
_FORTUNES = ("art", "computers", "definitions", "food", "kids", "law", "love", "science", "songs-poems", "startrek")
# Whoever it is that runs or sings: such names would be nearly the same text on both sides of a split.
_WHO = {"man", "woman", "person", "men", "women", "people", "boy", "girl", "with", "skin", "tone"}


@dataclass(frozen=True)
class Split:
    """A task's parts, as (text, class) pairs.

    Attributes:
        train: Half of every class, in random order.
        validation: A sixth.
        test: A third.
        num_classes: How many classes there are.
    """

    train: list[tuple[str, int]]
    validation: list[tuple[str, int]]
    test: list[tuple[str, int]]
    num_classes: int


def topics(cache: Path) -> Texts:
    """What a question to a chat program is about."""
    folder = next(fetch(CHATTERBOT, cache).rglob("data/english"))
    found = {}
    for path in sorted(folder.glob("*.yml")):
        talks = yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
        found[path.stem] = sorted({str(talk[0]).strip() for talk in talks})
    return {topic: texts for topic, texts in found.items() if len(texts) >= 20}


def emoji_names(cache: Path) -> Texts:
    """Which category an emoji is of, by its name; flags, whose names say so, and components are left out."""
    path = next(fetch(GOOGLE, cache).rglob("emoji.json"))
    found: dict[str, set[str]] = {}
    for each in json.loads(path.read_text(encoding="utf-8")):
        words = [word for word in each["name"].lower().replace("-", " ").split() if word not in _WHO]
        if words and each["category"] not in {"Flags", "Component"}:
            found.setdefault(each["category"], set()).add(" ".join(words))
    return {category: sorted(names) for category, names in sorted(found.items())}


def fortunes(cache: Path) -> Texts:
    """Which of ten collections of sayings one is from."""
    folder = next(fetch(FORTUNES, cache).rglob("games/fortunes"))
    found = {}
    for name in _FORTUNES:
        texts = (each.strip() for each in (folder / name).read_text(encoding="utf-8").split("\n%\n"))
        found[name] = sorted({" ".join(text.split()) for text in texts if 20 < len(text) < 300})
    return found


TASKS: Mapping[str, Callable[[Path], Texts]] = {"topics": topics, "emoji_names": emoji_names, "fortunes": fortunes}


def split(texts: Texts) -> Split:
    """Every class its share of each part, always the same; a text of two classes is left out."""
    counts: dict[str, int] = {}
    for each in (text for found in texts.values() for text in found):
        counts[each] = counts.get(each, 0) + 1
    parts: tuple[list[tuple[str, int]], ...] = ([], [], [])
    draw = random.Random(0)
    for label, found in enumerate(texts.values()):
        own = [text for text in found if counts[text] == 1]
        draw.shuffle(own)
        own = own[:MOST]
        half, most = len(own) // 2, len(own) * 2 // 3
        for part, chosen in zip(parts, (own[:half], own[half:most], own[most:]), strict=True):
            part += [(text, label) for text in chosen]
    train, validation, test = parts
    draw.shuffle(train)
    return Split(train, validation, test, len(texts))
