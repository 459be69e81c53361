"""A table of image paths and labels, as CSV or JSON -> labelled splits."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sensitune._schema import read_json, read_json_lines, shorten, show_name
from sensitune.data._build import LabelledFile, build_dataset
from sensitune.data._divide import WHOLE, check_fractions, divide
from sensitune.data._lists import check_exist, is_number, path_inside, read_text
from sensitune.data._scan import SPLIT_NAMES, as_written, find_unreadable
from sensitune.data._splits import shuffled
from sensitune.data._types import ImageData
from sensitune.errors import DataError

TABLE_SUFFIXES = (".csv", ".json", ".jsonl")
_COLUMNS = ("path", "label")


class _Row(NamedTuple):
    path: str
    label: str
    split: str


def load_table(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    skip_unreadable: bool = False,
    max_pixels: int | None = None,
) -> ImageData:
    """Read a table with the columns ``path``, ``label`` and, if it likes, ``split``.

    CSV has them in its first line. JSON is a list of objects with these keys, one object per line (``.jsonl``), or a
    mapping of paths to labels. Labels are names or numbers; class ids follow the sorted labels, numbers by value.
    Without ``split`` (``train``, ``val`` or ``validation``, ``test``) the images are split as a folder without
    splits is. An image has one label and one split; a row that is there twice counts once.

    Args:
        path: The table.
        root: Folder that the paths are relative to; None is the table's own.
        seed: Of the split and of the training order.
        validation_fraction: Share of what is split that becomes the validation split where there is none; 0 makes none.
        test_fraction: Share of a table without splits that becomes the test split; 0 makes none.
        skip_unreadable: Leave damaged images out and count them, instead of refusing the table.
        max_pixels: Pixels that an image may have; None is Pillow's limit, 89 million.

    Returns:
        The data; its `info` is as for a folder.

    Raises:
        ArgumentError: If a fraction is out of range.
        DataError: If the table is damaged, lacks a column or a value, contradicts itself, or names an image that is
            missing, cannot be read or lies outside `root`.
    """
    check_fractions(validation_fraction, test_fraction)
    table = Path(path).expanduser()
    folder = table.parent if root is None else Path(root).expanduser()
    named, class_names = _label(_read_rows(table), table, folder)
    files = [file for each in named.values() for file in each]
    check_exist(files, source=str(table))
    broken = find_unreadable([file.path for file in files], skip=skip_unreadable, max_pixels=max_pixels)
    kept = {name: [file for file in each if file.path not in broken] for name, each in named.items()}
    with _naming(table):
        splits, how = divide(kept, validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed)
        splits["train"] = shuffled(splits["train"], seed=seed)
        dataset = build_dataset(splits, class_names)
    info = {
        "source": str(table.resolve()),
        "split": how.replace("as in the folder", "as in the table"),
        "seed": seed,
        "split_sizes": {name: len(each) for name, each in splits.items()},
        "train_order": f"shuffled with seed {seed}",
        "skipped_unreadable": [str(each.relative_to(folder)) for each in broken],
        "licence": None,
    }
    with _naming(table):
        return ImageData(dataset, tuple(class_names), info)


@contextmanager
def _naming(table: Path) -> Iterator[None]:
    """Say where the rows are from that make no data set together."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{table}: {error}") from error


def _label(rows: Sequence[_Row], table: Path, folder: Path) -> tuple[dict[str, list[LabelledFile]], list[str]]:
    """The files of every split by class id, and the classes' names."""
    class_names = sorted({row.label for row in rows}, key=_by_value)
    ids = {name: label for label, name in enumerate(class_names)}
    named: dict[str, list[LabelledFile]] = {}
    seen: dict[Path, tuple[int, str, str]] = {}
    for number, row in enumerate(rows, start=1):
        path = path_inside(folder, row.path, where=f"Row {number} of {table}")
        split = _split_name(row.split, number, table)
        first, *said = seen.setdefault(path, (number, row.label, split))
        if said != [row.label, split]:
            raise DataError(
                f"Rows {first} and {number} of {table} contradict each other: {shorten(row.path)} is "
                f"{_describe(*said)} and {_describe(row.label, split)}. Keep one of them."
            )
        if first == number:
            named.setdefault(split, []).append(LabelledFile(path, ids[row.label]))
    _check_splits(named, table)
    return named, class_names


def _describe(label: str, split: str) -> str:
    return shorten(label) + (f" of the {split} split" if split else "")


def _read_rows(table: Path) -> list[_Row]:
    if not table.is_file():
        raise DataError(f"The table {table} does not exist.")
    if table.suffix.lower() == ".csv":
        records = _csv_records(table)
    elif table.suffix.lower() == ".jsonl":
        records = read_json_lines(table, error=DataError)
    else:
        records = _records(read_json(table, error=DataError))
    rows = [_row(record, number, table) for number, record in enumerate(records, start=1)]
    if not rows:
        raise DataError(f"The table {table} has no rows. It needs the columns {' and '.join(_COLUMNS)}.")
    return rows


def _csv_records(table: Path) -> Sequence[Any]:
    try:
        return list(csv.DictReader(read_text(table).splitlines()))
    except csv.Error as error:
        raise DataError(f"The table {table} is not CSV ({error}).") from error


def _records(content: Any) -> Sequence[Any]:
    """A mapping of paths to labels is as good as a list of objects."""
    if isinstance(content, dict):
        return [{"path": path, "label": label} for path, label in content.items()]
    return content if isinstance(content, list) else [content]


def _row(record: Any, number: int, table: Path) -> _Row:
    if not isinstance(record, Mapping):
        raise DataError(
            f"Row {number} of {table} must be an object with the keys path and label. Got {shorten(record)}."
        )
    for column in _COLUMNS:
        if record.get(column) in (None, ""):
            given = ", ".join(show_name(str(key)) for key in record if key) or "none"
            raise DataError(f"Row {number} of {table} has no {column}. Its columns are: {given}.")
    if None in record:  # where csv puts what is left over
        raise DataError(
            f"Row {number} of {table} has more values than columns, such as {shorten(record[None][0])}. An image has "
            "one label; put text that holds commas in quotes."
        )
    for column in (*_COLUMNS, "split"):
        if isinstance(record.get(column), list | dict):
            raise DataError(
                f"Row {number} of {table} has several values as its {column}: {shorten(record[column])}. An image has "
                "one label, a number or a text."
            )
    label = as_written(str(record["label"]).strip())
    return _Row(str(record["path"]), label, str(record.get("split") or "").strip())


def _split_name(written: str, number: int, table: Path) -> str:
    if not written:
        return WHOLE
    if written.lower() not in SPLIT_NAMES:
        raise DataError(
            f"Row {number} of {table} has the split {shorten(written)}. It must be one of {', '.join(SPLIT_NAMES)}."
        )
    return SPLIT_NAMES[written.lower()]


def _check_splits(named: Mapping[str, object], table: Path) -> None:
    if WHOLE in named and len(named) > 1:
        raise DataError(f"The table {table} gives some rows a split and others none. Give all of them one, or none.")
    if WHOLE not in named and "train" not in named:
        raise DataError(f"The table {table} has the splits {', '.join(named)} but no train.")


def _by_value(label: str) -> tuple[int, int, str]:
    return (0, int(label), "") if is_number(label) else (1, 0, label)
