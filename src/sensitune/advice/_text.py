"""Texts to score a language model on: JSON lines, CSV, or a data set of the hub."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sensitune._schema import shorten, show_name, show_reason
from sensitune.errors import DataError

_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")


@dataclass(frozen=True)
class TextData:
    """Texts, and their classes where they have any.

    Attributes:
        texts: The texts, in the source's order.
        labels: Number of each text's class in `classes`; None if the task is to go on with the text.
        classes: Names of the classes, sorted.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()


def is_text(source: str) -> bool:
    """Whether a source of data holds texts: a file of rows, or a data set of the hub."""
    return source.startswith("hf:") or Path(source).suffix.lower() in _SUFFIXES


def load_text(
    source: str | os.PathLike[str], *, text: str = "text", label: str | None = None, split: str = "train"
) -> TextData:
    """Read texts.

    Args:
        source: A file of JSON lines (.jsonl) or a table with a header (.csv, .tsv), or ``hf:OWNER/NAME``.
        text: The column with the texts.
        label: The column with the classes; None = there are none.
        split: Which part of a data set of the hub.

    Returns:
        The texts; rows with an empty text are left out.

    Raises:
        DataError: If the source cannot be read, lacks a column, or holds no text, or fewer than two classes.
    """
    name = os.fspath(source)
    rows = _hub_rows(name, split) if name.startswith("hf:") else _file_rows(Path(name))
    texts: list[str] = []
    labels: list[str] = []
    for number, row in enumerate(rows, 1):
        found = _cell(row, text, name, number)
        if not isinstance(found, str):
            raise DataError(
                f"{show_name(name)}: `{show_name(text)}` of row {number} must be text. Got {shorten(found)}."
            )
        if not found.strip():
            continue
        texts.append(found)
        if label is not None:
            labels.append(str(_cell(row, label, name, number)))
    if not texts:
        raise DataError(f"{show_name(name)} holds no text in the column `{show_name(text)}`.")
    if label is None:
        return TextData(tuple(texts))
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise DataError(
            f"The column `{show_name(label)}` of {show_name(name)} must hold at least two classes. "
            f"Got {shorten(classes[0])} alone."
        )
    numbers = {each: number for number, each in enumerate(classes)}
    return TextData(tuple(texts), tuple(numbers[each] for each in labels), classes)


def text_batches(
    data: TextData, tokenizer: Any, *, batch_size: int = 8, max_length: int = 256, seed: int = 0
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches that a transformers model takes with labels, drawn at random without repetition.

    Args:
        data: The texts.
        tokenizer: The model's, with a padding token.
        batch_size: Texts per batch.
        max_length: Tokens per text; longer ones are cut.
        seed: Of the order.

    Yields:
        ``input_ids`` and ``attention_mask`` ``[B, T]``; ``labels`` ``[B]``, the classes, or ``[B, T]``, the ids with
        −100 at the padding.
    """
    order = torch.randperm(len(data.texts), generator=torch.Generator().manual_seed(seed)).tolist()
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [data.texts[index] for index in chosen],
            truncation=True, max_length=max_length, padding=True, return_tensors="pt",
        )  # fmt: skip
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if data.labels is not None:
            labels = torch.tensor([data.labels[index] for index in chosen])
        else:
            labels = ids.masked_fill(mask == 0, -100)
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _cell(row: dict[str, Any], column: str, source: str, number: int) -> Any:
    if column not in row:
        there = ", ".join(show_name(str(each)) for each in row)
        raise DataError(
            f"{show_name(source)} has no column `{show_name(column)}` in row {number}; it has {shorten(there)}. "
            "Name the columns with --text and --label."
        )
    return row[column]


def _file_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix.lower() in {".csv", ".tsv"}:
                yield from csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{show_name(str(path))}: line {number} must be an object. Got {shorten(row)}.")
                    yield row
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{show_name(str(path))} cannot be read: {show_reason(error)}.") from error


def _hub_rows(name: str, split: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    try:
        yield from load_dataset(name.removeprefix("hf:"), split=split)
    except Exception as error:  # almost any, by what is wrong with the repository or the network
        raise DataError(
            f"{show_name(name)} cannot be loaded ({type(error).__name__}: {show_reason(error)}). Give hf:OWNER/NAME "
            "of a data set that can be reached, or a .jsonl, .csv or .tsv file."
        ) from error
