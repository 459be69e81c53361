"""Lists of image paths and labels: what a line may say, and which files it may name."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from sensitune._schema import shorten
from sensitune.data._build import LabelledFile
from sensitune.errors import DataError


def read_text(path: Path) -> str:
    """A list file as text; Windows' line ends and byte order mark are taken off.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        DataError: If it is missing or not UTF-8.
    """
    if not path.is_file():
        raise DataError(f"The list {path} does not exist.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"The list {path} is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error


def read_list(path: Path, *, images: Path, num_classes: int) -> list[LabelledFile]:
    """Read lines of an image's path, a space and its class id; a path may hold spaces.

    Args:
        path: The list.
        images: The folder that the paths are relative to.
        num_classes: Class ids must lie below it.

    Returns:
        The files in the list's order.

    Raises:
        DataError: If a line cannot be understood, a label is out of range, or a path is missing or leaves the folder.
    """
    files = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"Line {number} of {path}"
        name, separator, label = line.strip().rpartition(" ")
        if not separator or not label.isascii() or not is_number(label.removeprefix("-")):
            raise DataError(f"{where} must be an image path, a space and a class id. Got {shorten(line.strip())}.")
        if not 0 <= int(label) < num_classes:
            raise DataError(f"{where} has the label {label}. Class ids go from 0 to {num_classes - 1}.")
        files.append(LabelledFile(path_inside(images, name.strip(), where=where), int(label)))
    check_exist(files, source=str(path))
    return files


def path_inside(folder: Path, relative: str, *, where: str) -> Path:
    """A path of a list as a path on this machine.

    Args:
        folder: What it is relative to.
        relative: The path as written, with slashes or backslashes between its parts.
        where: What to call its place in an error.

    Returns:
        The path.

    Raises:
        DataError: If it is absolute or leaves the folder.
    """
    parts = relative.replace("\\", "/").split("/")
    drive = parts[0][1:2] == ":"
    if not parts[0] or drive or ".." in parts:
        raise DataError(
            f"{where} names {shorten(relative)}, which leaves the folder {folder}. Paths must stay inside it."
        )
    path = folder.joinpath(*parts)
    # `os.path` says no of a name that is too long for any file, where `Path` raises.
    if os.path.exists(path) or relative.isascii():
        return path
    # The list and the disk may write é differently: as one character, or as e and an accent.
    forms = [folder.joinpath(*(unicodedata.normalize(form, part) for part in parts)) for form in ("NFC", "NFD")]
    return next((form for form in forms if os.path.exists(form)), path)


def is_number(text: str) -> bool:
    """Whether a class id, or a label that is sorted by its value, is written as one; Python reads no very long ones."""
    return text.isdecimal() and len(text) < 19


def check_exist(files: Iterable[LabelledFile], *, source: str) -> None:
    """Refuse a list that names missing images.

    Args:
        files: What the list names.
        source: What to call the list in an error.

    Raises:
        DataError: If a file is missing.
    """
    missing = [file.path for file in files if not os.path.isfile(file.path)]
    if missing:
        more = f", and {len(missing) - 1:,} more that are missing" if len(missing) > 1 else ""
        raise DataError(
            f"{source} names the image {_shown(missing[0])}, which does not exist{more}. Is the data complete?"
        )


def _shown(path: Path) -> str:
    name = str(path)
    return name if name.isprintable() and len(path.name) < 256 else shorten(name)


def check_count(files: Sequence[LabelledFile], *, expected: Sequence[int], source: str) -> None:
    """Refuse a list of another length than the benchmark's.

    Args:
        files: What the list names.
        expected: The lengths it may have.
        source: What to call the list in an error.

    Raises:
        DataError: If it has another length.
    """
    if len(files) not in expected:
        lengths = " or ".join(f"{each:,}" for each in expected)
        raise DataError(f"{source} must have {lengths} lines. It has {len(files):,}.")
