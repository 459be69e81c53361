"""Every run a row: one JSON line with what was run, what it cost and what it reached; the file is all a table needs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sensitune.errors import DataError

Value = bool | int | float | str | None
LOSSES = {"test_loss", "validation_loss"}
"""What only a language model's rows have."""


@dataclass(frozen=True)
class Row:
    """A finished run.

    Attributes:
        task: Its task.
        group: The task's group.
        method: Label of its method.
        settings: Dotted name -> value of what its run has, and the profile's other runs need not have.
        seed: Its seed.
        draw: Number of the random placement it trained; None for a placement that is not drawn.
        trainable_params: Scalars that trained, the head not counted.
        test_accuracy: Of the last epoch, in [0, 1]; None if the training diverged.
        validation_accuracy: Likewise.
        train_loss: Mean loss of the last epoch's steps.
        epochs: Passes over the training split.
        seconds: Seconds of training.
        precision: Number format of the forward pass.
        threads: Threads it had.
        hardware: The processor.
        date: Day it ended, UTC.
        commit: What it was run with.
        test_loss: Mean loss of a test token, in nats, for a language model; None for a classifier.
        validation_loss: Likewise.
    """

    task: str
    group: str
    method: str
    settings: Mapping[str, Value]
    seed: int
    draw: int | None
    trainable_params: int
    test_accuracy: float | None
    validation_accuracy: float | None
    train_loss: float | None
    epochs: int
    seconds: float
    precision: str
    threads: int
    hardware: str
    date: str
    commit: str
    test_loss: float | None = None
    validation_loss: float | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What no two rows of a file share: the run."""
        return self.task, self.method, as_text(self.settings), self.seed


def as_text(settings: Mapping[str, Value]) -> str:
    """Settings as one string, equal for equal settings."""
    return json.dumps(dict(settings), sort_keys=True)


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a file; none if there is no file.

    Args:
        path: The file.

    Returns:
        Its rows, in its order.

    Raises:
        DataError: If a line is no row, or two lines are the same run.
    """
    if not Path(path).exists():
        return []
    names, rows = {each.name for each in fields(Row) if each.name not in LOSSES}, []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values: Any = json.loads(line)
        except ValueError as error:
            raise DataError(f"{os.fspath(path)}, line {number}: no JSON ({error}).") from error
        if not isinstance(values, dict) or values.keys() - LOSSES != names:
            raise DataError(f"{os.fspath(path)}, line {number}: a row must have exactly {', '.join(sorted(names))}.")
        rows.append(Row(**values))
    if repeated := _repeated(row.key for row in rows):
        raise DataError(f"{os.fspath(path)} has the run {repeated} twice. Remove one.")
    return rows


def write_rows(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """Write a file of rows, whole or not at all.

    Args:
        path: The file.
        rows: Its rows.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.new")
    lines = [
        {name: value for name, value in asdict(row).items() if name not in LOSSES or value is not None} for row in rows
    ]
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, target)


def _repeated(keys: Iterable[Any]) -> Any:
    seen = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return None
