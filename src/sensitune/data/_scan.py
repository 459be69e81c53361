"""A folder on disk -> split name -> class name -> image files, with everything that is wrong with it said."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeAlias

from sensitune._schema import show_reason
from sensitune.data._divide import WHOLE
from sensitune.data._image_file import DecodingMemory, is_special, open_image
from sensitune.data._transform import to_rgb
from sensitune.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}
# Without train beside them, these are splits whose train is missing; the others, and "Test", may be classes.
_SURE_SPLITS = ("train", "val", "validation", "test")
Tree: TypeAlias = dict[str, dict[str, list[Path]]]
"""Split name -> class name -> its image files, sorted."""
_LOGGER = logging.getLogger(__name__)
_LAYOUT = "Expected class_name/*.jpg, or train/class_name/*.jpg with val/ and test/ beside it"


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, if it is one."""
    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"The image folder {root} does not exist.")
    if not root.is_dir():
        raise DataError(f"{root} is a file, not a folder. {_LAYOUT}.")
    return root


def scan_folder(root: Path) -> Tree:
    """List the image files of every class, by split where the folder has splits."""
    folders = {each.name: each for each in _visible(root) if each.is_dir()}
    beside_train = any(name.lower() == "train" for name in folders)
    split_folders = {
        name: folder
        for name, folder in folders.items()
        if (name.lower() in SPLIT_NAMES if beside_train else name in _SURE_SPLITS)
    }
    if not split_folders:
        return {WHOLE: _classes(root)}
    if others := sorted(set(folders) - set(split_folders)):
        raise DataError(f"{root} holds splits ({', '.join(split_folders)}) and other folders ({', '.join(others)}).")
    if not beside_train:
        raise DataError(f"{root} holds {', '.join(split_folders)} but no train folder. {_LAYOUT}.")
    splits: dict[str, str] = {}
    for name in split_folders:
        if (other := splits.setdefault(SPLIT_NAMES[name.lower()], name)) != name:
            raise DataError(f"{root} holds both {other} and {name}. Keep one.")
    return {split: _classes(split_folders[name]) for split, name in splits.items()}


def _classes(folder: Path) -> dict[str, list[Path]]:
    classes: dict[str, list[Path]] = {}
    for each in _visible(folder):
        if each.is_dir():
            classes.setdefault(as_written(each.name), []).extend(_image_files(each))
    return classes


def as_written(name: str) -> str:
    """A class's name in the form that keyboards write (NFC): macOS and archives made there hold é as two characters."""
    return unicodedata.normalize("NFC", name)


def _image_files(folder: Path) -> list[Path]:
    named = [each for each in _visible(folder) if each.suffix.lower() in IMAGE_SUFFIXES]
    for special in filter(is_special, named):
        _LOGGER.warning("%s is left out: it is no file, but a FIFO, a socket or a device.", special)
    return [each for each in named if each.is_file()]


def _visible(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def check_tree(tree: Tree, root: Path) -> None:
    """Refuse what no model could be trained on; asked again after unreadable images were skipped."""
    if not any(files for classes in tree.values() for files in classes.values()):
        raise DataError(f"{root} holds no images in class folders ({', '.join(IMAGE_SUFFIXES)}). {_LAYOUT}.")
    for split, classes in tree.items():
        if not any(classes.values()):
            raise DataError(f"The {split} split of {root} holds no images. Add some, or remove its folder.")
        for name, files in classes.items():
            if not files:
                where = f"{split} split of {root}" if split else f"folder {root}"
                raise DataError(f"Class {name!r} of the {where} holds no images. Add some, or remove its folder.")
    training = tree.get("train", tree.get(WHOLE, {}))
    for split, classes in tree.items():
        if unknown := sorted(set(classes) - set(training)):
            raise DataError(f"The {split} split of {root} has a class that train lacks: {unknown[0]!r}.")
    if len(training) < 2:
        raise DataError(f"{root} must hold at least 2 classes to tell apart. It holds 1: {next(iter(training))!r}.")


def without_unreadable(tree: Tree, *, skip: bool, max_pixels: int | None = None) -> tuple[Tree, list[Path]]:
    """The tree without the images that cannot be decoded, which are refused unless they may be skipped."""
    paths = [file for classes in tree.values() for files in classes.values() for file in files]
    broken = find_unreadable(paths, skip=skip, max_pixels=max_pixels)
    kept = {
        split: {name: [file for file in files if file not in broken] for name, files in classes.items()}
        for split, classes in tree.items()
    }
    return kept, list(broken)


def find_unreadable(paths: Sequence[Path], *, skip: bool, max_pixels: int | None = None) -> dict[Path, str]:
    """Decode every image once; Pillow's own `verify` does not notice a file that breaks off.

    Args:
        paths: Image files.
        skip: Return those that cannot be decoded instead of refusing them.
        max_pixels: As for `open_image`.

    Returns:
        The files that cannot be decoded, and why.

    Raises:
        DataError: If there are any and `skip` is false.
    """
    why_unreadable = partial(_why_unreadable, max_pixels=max_pixels, memory=DecodingMemory())
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        reasons = {path: why for path, why in zip(paths, pool.map(why_unreadable, paths), strict=True) if why}
    if reasons and not skip:
        path, why = next(iter(reasons.items()))
        more = f", nor can {len(reasons) - 1} more" if len(reasons) > 1 else ""
        raise DataError(
            f"The image {path} cannot be read ({why}){more}. "
            f"Repair or remove it, or leave such images out with `skip_unreadable=True` (--skip-unreadable)."
        )
    return reasons


def _why_unreadable(path: Path, *, max_pixels: int | None, memory: DecodingMemory) -> str | None:
    try:
        with open_image(path, max_pixels=max_pixels) as image:
            pixels = image.width * image.height
            # A JPEG is decoded at an eighth of its size: its whole stream is read, for a fraction of the time.
            image.draft("RGB", (1, 1))
            with memory.taken_by(image, encoded_pixels=pixels):
                to_rgb(image)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        return show_reason(error)
    return None


def count_other_files(root: Path, tree: Tree) -> int:
    """Visible files that are no images, or do not lie in a class folder."""
    images = sum(len(files) for classes in tree.values() for files in classes.values())
    return sum(1 for _ in _visible_files(root, set())) - images


def _visible_files(folder: Path, above: set[Path]) -> Iterator[Path]:
    """All of them, through links too, but never into a folder that holds the link."""
    above = above | {folder.resolve()}
    for each in _visible(folder):
        if each.is_file():
            yield each
        elif each.is_dir() and each.resolve() not in above:
            yield from _visible_files(each, above)
