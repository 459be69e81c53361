"""``sensitune predict``: classes of image files as CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

import tyro

from sensitune._files import atomic_write, refuse_overwriting
from sensitune._lock import one_writer
from sensitune._text import csv_cell
from sensitune.cli._arguments import parse
from sensitune.cli._console import warn
from sensitune.runs import DeviceName, Predictions
from sensitune.runs import predict as predict_files


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(predict, arguments, command="predict")


def predict(
    adapter: tyro.conf.Positional[Path],
    images: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    output: Path | None = None,
    checkpoint: Path | None = None,
    device: DeviceName = "auto",
    batch_size: int = 64,
    skip_unreadable: bool = False,
    max_pixels: int | None = None,
) -> None:
    """Predict the classes of image files from an adapter folder and its backbone.

    Writes CSV: file, class, probability, then one column per class. A name that starts as a formula does (= + - @)
    stands behind an apostrophe, control characters are escaped.

    Args:
        adapter: Adapter folder of a run: RUN/adapter or RUN/adapter_chosen.
        images: Image files.
        output: CSV file to write; standard output by default.
        checkpoint: The backbone's weight file, if it has moved or the adapter has left its run folder.
        device: Where it runs.
        batch_size: Images that go through the model at once.
        skip_unreadable: Leave damaged images out and name them, instead of stopping at the first.
        max_pixels: Pixels that an image may have before it counts as damaged; 89 million by default.
    """
    if output is not None:
        refuse_overwriting(output, [adapter, *images, *([] if checkpoint is None else [checkpoint])])
    with nullcontext() if output is None else one_writer(output, file=True):
        predictions = predict_files(
            adapter,
            images,
            checkpoint=checkpoint,
            device=device,
            batch_size=batch_size,
            skip_unreadable=skip_unreadable,
            max_pixels=max_pixels,
        )
        for path in predictions.skipped:
            warn(f"skipped {path}: it cannot be read")
        if output is None:
            write_csv(predictions, sys.stdout)
            return
        with atomic_write(output) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            write_csv(predictions, file)


def write_csv(predictions: Predictions, file: TextIO) -> None:
    """Write predictions as CSV; a name that a spreadsheet would compute stands behind an apostrophe.

    Args:
        predictions: What to write.
        file: Where to.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", "class", "probability", *map(csv_cell, predictions.class_names)])
    for index, path in enumerate(predictions.files):
        name, probability = predictions.best(index)
        shares = [f"{share:.6f}" for share in predictions.probabilities[index].tolist()]
        writer.writerow([csv_cell(path), csv_cell(name), f"{probability:.6f}", *shares])
