"""Tasks of pictures made here: characters of 14 scripts, sprites as in dSprites, rendered scenes as in CLEVR."""

from __future__ import annotations

import importlib
import sys
import unicodedata
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from labelled import Example
from packages import BULLET, FONTS, fetch
from PIL import Image, ImageDraw, ImageFont

NUM_PICTURES = 3000
NUM_SCENES = 2000
PIXELS = 96
# Script -> font file without style, first and last code point.
SCRIPTS = {
    "Arabic": ("NotoSansArabic", 0x0620, 0x06FF),
    "Armenian": ("NotoSansArmenian", 0x0530, 0x058F),
    "Bengali": ("NotoSansBengali", 0x0980, 0x09FF),
    "Cherokee": ("NotoSansCherokee", 0x13A0, 0x13FF),
    "Cyrillic": ("NotoSans", 0x0400, 0x04FF),
    "Devanagari": ("NotoSansDevanagari", 0x0900, 0x097F),
    "Ethiopic": ("NotoSansEthiopic", 0x1200, 0x137F),
    "Georgian": ("NotoSansGeorgian", 0x10A0, 0x10FF),
    "Greek": ("NotoSans", 0x0370, 0x03FF),
    "Gujarati": ("NotoSansGujarati", 0x0A80, 0x0AFF),
    "Hebrew": ("NotoSansHebrew", 0x05D0, 0x05EA),
    "Khmer": ("NotoSansKhmer", 0x1780, 0x17B3),
    "Latin": ("NotoSans", 0x0041, 0x024F),
    "Thai": ("NotoSansThai", 0x0E01, 0x0E46),
}
STYLES = ("Regular", "Bold")
LETTERINGS = tuple(
    f"{family}-{style}" for family in ("NotoSans", "NotoSerif") for style in (*STYLES, "Italic", "BoldItalic")
)
KINDS = ("sphere", "box", "cylinder")
SHAPES = ("ellipse", "rectangle", "rhombus")
NUM_PLACES = 16
NUM_ANGLES = 8
COUNTS = range(3, 9)
NUM_DISTANCES = 6


def scripts(cache: Path) -> list[Example]:
    """Single letters by script, in two weights, turned and scaled a little; a code point keeps to one split."""
    folder = fetch(FONTS, cache) / "usr/share/fonts/truetype/noto"
    letters = _without_shared({script: _letters(folder, *where) for script, where in SCRIPTS.items()}, folder)
    generator = np.random.default_rng(0)
    examples = []
    for number in range(NUM_PICTURES):
        script = list(SCRIPTS)[number % len(SCRIPTS)]
        letter = letters[script][generator.integers(len(letters[script]))]
        style = STYLES[generator.integers(len(STYLES))]
        font = ImageFont.truetype(folder / f"{SCRIPTS[script][0]}-{style}.ttf", int(generator.integers(36, 64)))
        examples.append(Example(_glyph(letter, font, generator), script, f"{script} {_base(letter)}"))
    return examples


def lettering(cache: Path) -> list[Example]:
    """Latin letters by their lettering, of eight; a letter keeps to one split."""
    folder = fetch(FONTS, cache) / "usr/share/fonts/truetype/noto"
    letters = _letters(folder, *SCRIPTS["Latin"])
    generator = np.random.default_rng(3)
    examples = []
    for number in range(NUM_PICTURES):
        name = LETTERINGS[number % len(LETTERINGS)]
        letter = letters[generator.integers(len(letters))]
        font = ImageFont.truetype(folder / f"{name}.ttf", int(generator.integers(36, 64)))
        examples.append(Example(_glyph(letter, font, generator), name, _base(letter)))
    return examples


def _base(letter: str) -> str:
    """A letter without accent or case: its accented, large and small forms share a split."""
    return unicodedata.normalize("NFD", letter)[0].casefold()


def _without_shared(letters: dict[str, list[str]], folder: Path) -> dict[str, list[str]]:
    """Leave out letters that look the same in two scripts, such as the A of Latin, Greek and Cyrillic."""
    scripts_of: dict[bytes, set[str]] = defaultdict(set)
    looks: dict[tuple[str, str], bytes] = {}
    for script, each in letters.items():
        font = ImageFont.truetype(folder / f"{SCRIPTS[script][0]}-Regular.ttf", 48)
        for letter in each:
            image = Image.new("1", (PIXELS, PIXELS))
            ImageDraw.Draw(image).text((PIXELS / 2, PIXELS / 2), letter, fill=1, font=font, anchor="mm")
            looks[script, letter] = image.tobytes()
            scripts_of[image.tobytes()].add(script)
    return {
        script: [letter for letter in each if len(scripts_of[looks[script, letter]]) == 1]
        for script, each in letters.items()
    }


def _letters(folder: Path, font: str, first: int, last: int) -> list[str]:
    """Letters that the font has: no combining marks, digits or signs."""
    from fontTools.ttLib import TTFont

    known = TTFont(folder / f"{font}-Regular.ttf").getBestCmap()
    return [chr(code) for code in range(first, last + 1) if code in known and unicodedata.category(chr(code))[0] == "L"]


def _glyph(letter: str, font: ImageFont.FreeTypeFont, generator: np.random.Generator) -> Image.Image:
    paper, ink = int(generator.integers(160, 256)), int(generator.integers(0, 96))
    image = Image.new("L", (PIXELS, PIXELS), paper)
    centre = tuple(PIXELS / 2 + generator.uniform(-8, 8, size=2))
    ImageDraw.Draw(image).text(centre, letter, fill=ink, font=font, anchor="mm")
    turned = image.rotate(generator.uniform(-15, 15), Image.Resampling.BILINEAR, fillcolor=paper)
    noise = generator.normal(0, 8, size=(PIXELS, PIXELS))
    return Image.fromarray(np.clip(np.asarray(turned) + noise, 0, 255).astype(np.uint8)).convert("RGB")


def outline(shape: str, *, x: float, y: float, size: float, angle: float) -> list[tuple[float, float]]:
    """Corners of a shape twice as long as wide: turned by half a circle it is the same.

    Args:
        shape: One of `SHAPES`.
        x: Centre, in [0, 1] of the picture's width.
        y: Centre, in [0, 1] of its height.
        size: Half the length, likewise.
        angle: Of the long side, in radians, anticlockwise from the horizontal.

    Returns:
        Points in [0, 1].
    """
    if shape == "ellipse":
        turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = np.stack([np.cos(turn), 0.5 * np.sin(turn)], axis=1)
    elif shape == "rectangle":
        points = np.array([[0.9, 0.4], [-0.9, 0.4], [-0.9, -0.4], [0.9, -0.4]])
    else:
        points = np.array([[1.0, 0.0], [0.0, 0.5], [-1.0, 0.0], [0.0, -0.5]])
    turned = points @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return [(x + size * dx, y + size * dy) for dx, dy in turned]


def place_of(x: float) -> int:
    """The bin of a horizontal place in [0.2, 0.8]."""
    return min(int((x - 0.2) / 0.6 * NUM_PLACES), NUM_PLACES - 1)


def angle_of(angle: float) -> int:
    """The bin of an angle: half a turn makes no difference to any of the shapes."""
    return int(angle % np.pi / np.pi * NUM_ANGLES) % NUM_ANGLES


@lru_cache(maxsize=1)
def _sprites() -> list[tuple[Image.Image, int, int]]:
    """Pictures of one shape, with the bins of its place and angle."""
    generator = np.random.default_rng(1)
    sprites = []
    for number in range(NUM_PICTURES):
        x, y, size, angle = (generator.uniform(*span) for span in ((0.2, 0.8), (0.2, 0.8), (0.1, 0.18), (0, 2 * np.pi)))
        points = outline(SHAPES[number % len(SHAPES)], x=x, y=y, size=size, angle=angle)
        # Light on dark or dark on light: else the place is a linear function of the pixels.
        grounds = generator.permutation([generator.integers(0, 90), generator.integers(150, 256)]).tolist()
        large = Image.new("L", (4 * PIXELS, 4 * PIXELS), grounds[0])
        corners = [(4 * PIXELS * dx, 4 * PIXELS * dy) for dx, dy in points]
        ImageDraw.Draw(large).polygon(corners, fill=grounds[1])
        small = np.asarray(large.resize((PIXELS, PIXELS), Image.Resampling.BOX)) + generator.normal(
            0, 6, (PIXELS, PIXELS)
        )
        image = Image.fromarray(np.clip(small, 0, 255).astype(np.uint8)).convert("RGB")
        sprites.append((image, place_of(x), angle_of(angle)))
    return sprites


def sprites_location(cache: Path) -> list[Example]:
    """The horizontal place of a sprite, in 16 bins."""
    del cache
    return [Example(image, f"{place:02d}", str(index)) for index, (image, place, _) in enumerate(_sprites())]


def sprites_orientation(cache: Path) -> list[Example]:
    """The angle of a sprite's long side, in 8 bins of half a turn."""
    del cache
    return [Example(image, f"{angle}", str(index)) for index, (image, _, angle) in enumerate(_sprites())]


@lru_cache(maxsize=1)
def _scenes(cache: Path) -> list[tuple[Image.Image, int, float, str]]:
    """Rendered scenes, with the number of things in them, the distance of the nearest one's centre, and its kind."""
    sys.path.insert(0, str(fetch(BULLET, cache)))
    bullet = importlib.import_module("pybullet")
    client = bullet.connect(bullet.DIRECT)
    try:
        generator = np.random.default_rng(2)
        return [_scene(bullet, generator) for _ in range(NUM_SCENES)]
    finally:
        bullet.disconnect(client)


def _scene(bullet: Any, generator: np.random.Generator) -> tuple[Image.Image, int, float, str]:
    bullet.resetSimulation()
    shade = generator.uniform(0.35, 0.65)
    _place(bullet, (0, 0, -0.05), bullet.GEOM_BOX, (shade, shade, shade, 1), halfExtents=[40, 40, 0.05])
    eye = np.array([generator.uniform(-1, 1), -9 + generator.uniform(-0.5, 0.5), 6 + generator.uniform(-0.5, 0.5)])
    centres = _centres(int(generator.integers(COUNTS.start, COUNTS.stop)), generator)
    kinds = [_thing(bullet, x, y, generator) for x, y in centres]
    view = bullet.computeViewMatrix(list(eye), [0, 0.5, 0], [0, 0, 1])
    lens = bullet.computeProjectionMatrixFOV(50, 1, 0.1, 60)
    options = {"renderer": bullet.ER_TINY_RENDERER, "lightDirection": [3, -4, 8], "shadow": 1}
    _, _, pixels, _, _ = bullet.getCameraImage(PIXELS, PIXELS, view, lens, **options)
    image = np.asarray(pixels, dtype=np.uint8).reshape(PIXELS, PIXELS, 4)[..., :3]
    nearest, kind = min(
        (float(np.linalg.norm(np.array([*where, 0.4]) - eye)), kind) for where, kind in zip(centres, kinds, strict=True)
    )
    return Image.fromarray(image), len(centres), nearest, kind


def _centres(count: int, generator: np.random.Generator) -> list[tuple[float, float]]:
    """Places on the floor that keep their distance, so that nothing stands in another thing."""
    centres: list[tuple[float, float]] = []
    while len(centres) < count:
        x, y = generator.uniform(-3, 3), generator.uniform(-3, 4)
        if all(np.hypot(x - a, y - b) > 1.3 for a, b in centres):
            centres.append((x, y))
    return centres


def _thing(bullet: Any, x: float, y: float, generator: np.random.Generator) -> str:
    """Put a thing of random kind, colour and size there."""
    colour = (*generator.uniform(0.1, 1, size=3), 1)
    size = generator.uniform(0.3, 0.55)
    kind = generator.integers(3)
    if kind == 0:
        _place(bullet, (x, y, size), bullet.GEOM_SPHERE, colour, radius=size)
    elif kind == 1:
        _place(bullet, (x, y, size), bullet.GEOM_BOX, colour, halfExtents=[size * 0.9] * 3)
    else:
        _place(bullet, (x, y, size), bullet.GEOM_CYLINDER, colour, radius=size * 0.8, length=2 * size)
    return KINDS[kind]


def _place(bullet: Any, where: tuple[float, ...], shape: int, colour: tuple[float, ...], **sizes: Any) -> None:
    visual = bullet.createVisualShape(shape, rgbaColor=list(colour), **sizes)
    bullet.createMultiBody(0, -1, visual, basePosition=list(where))


def scene_count(cache: Path) -> list[Example]:
    """How many things stand in a scene: 3 to 8."""
    return [Example(image, str(count), str(index)) for index, (image, count, *_) in enumerate(_scenes(cache))]


def scene_distance(cache: Path) -> list[Example]:
    """How far the nearest thing is from the eye, in 6 bins that hold as many scenes each."""
    scenes = _scenes(cache)
    edges = np.quantile([distance for _, _, distance, _ in scenes], np.linspace(0, 1, NUM_DISTANCES + 1)[1:-1])
    return [
        Example(image, str(int(np.searchsorted(edges, distance))), str(index))
        for index, (image, _, distance, _) in enumerate(scenes)
    ]


def scene_nearest(cache: Path) -> list[Example]:
    """Of which kind the thing is that is nearest to the eye."""
    return [Example(image, kind, str(index)) for index, (image, _, _, kind) in enumerate(_scenes(cache))]
