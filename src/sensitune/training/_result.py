"""What a training run leaves behind: its numbers and the names of its files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sensitune._files import atomic_write
from sensitune._schema import (
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    Seed,
    UnitInterval,
    read,
    read_json,
    read_json_lines,
    to_plain,
    write_json,
)
from sensitune.errors import RunFolderError


@dataclass(frozen=True)
class EpochMetrics:
    """One line of ``metrics.jsonl``.

    Attributes:
        epoch: The epoch, from 1; 0 is the start of a recipe without epochs.
        train_loss: Mean loss of its steps; that of the whole split for epoch 0.
        learning_rate: Learning rate of its last step.
        seconds: Wall-clock seconds it trained, without the validation.
        validation_accuracy: Accuracy after it on the validation split, in [0, 1]; None without such a split.
        validation_loss: Mean cross-entropy there.
    """

    epoch: NonNegativeInt
    train_loss: float
    learning_rate: NonNegative
    seconds: NonNegative
    validation_accuracy: UnitInterval | None = None
    validation_loss: float | None = None


@dataclass(frozen=True)
class TrainingResult:
    """What `train` found. The test split was read only after the last epoch, never to choose anything.

    Attributes:
        metrics: Every epoch.
        last_epoch: The last epoch; 0 if the recipe has none.
        chosen_epoch: The first epoch with the best validation accuracy; None without a validation split.
        test_accuracy_last: Test accuracy of the last epoch's weights, in [0, 1]; None without a test split.
        test_accuracy_chosen: Test accuracy of the chosen epoch's weights.
        trained_params: Scalars that trained, head included.
        num_train_images: Size of the training split.
        seconds: Seconds of all epochs, without validation and test; and of the features, where there are such.
        seed: Seed it trained with.
        device: Where it trained.
        precision: ``"float32"`` or ``"bfloat16"``.
        frozen_features: Whether the epochs went through features computed once, the head being all that trains.
        num_processes: How many processes trained together.
        resumed_after: The epoch whose checkpoint it went on from; None for a run in one piece.
    """

    metrics: tuple[EpochMetrics, ...]
    last_epoch: NonNegativeInt
    chosen_epoch: NonNegativeInt | None
    test_accuracy_last: UnitInterval | None
    test_accuracy_chosen: UnitInterval | None
    trained_params: PositiveInt
    num_train_images: PositiveInt
    seconds: NonNegative
    seed: Seed
    device: str
    precision: Literal["float32", "bfloat16"]
    frozen_features: bool = False
    num_processes: PositiveInt = 1
    resumed_after: PositiveInt | None = None

    @property
    def validation_accuracy_last(self) -> float | None:
        """Validation accuracy after the last epoch."""
        return self.metrics[-1].validation_accuracy

    @property
    def validation_accuracy_chosen(self) -> float | None:
        """Validation accuracy after the chosen epoch."""
        return next((row.validation_accuracy for row in self.metrics if row.epoch == self.chosen_epoch), None)

    @property
    def images_per_second(self) -> float:
        """Images trained on per second, over all epochs."""
        return self.num_train_images * self.last_epoch / self.seconds


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training run stands after a step.

    Attributes:
        step: Steps done.
        num_steps: Steps in all.
        epoch: The epoch under way, from 1.
        num_epochs: Epochs in all.
        train_loss: Mean loss of the last finished epoch; None in the first.
        validation_accuracy: Validation accuracy after it, in [0, 1]; None if there is none yet.
    """

    step: int
    num_steps: int
    epoch: int
    num_epochs: int
    train_loss: float | None
    validation_accuracy: float | None


@dataclass(frozen=True)
class TrainingFolder:
    """Names of the files of a training run under its root."""

    root: Path

    @property
    def adapter(self) -> Path:
        """What trained, after the last epoch."""
        return self.root / "adapter"

    @property
    def chosen_adapter(self) -> Path:
        """What trained, after the epoch that the validation split chose."""
        return self.root / "adapter_chosen"

    @property
    def checkpoints(self) -> Path:
        """What an interrupted run goes on from; gone once it is finished."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line an epoch."""
        return self.root / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """The result's numbers."""
        return self.root / "training.json"

    @property
    def answers(self) -> Path:
        """What the last epoch's weights said of every test image."""
        return self.root / "answers.safetensors"

    def candidate(self, epoch: int) -> Path:
        """Weights of an epoch that may turn out to be the chosen one."""
        return self.checkpoints / f"chosen-{epoch}"


def chosen_epoch(metrics: Iterable[EpochMetrics]) -> int | None:
    """The first epoch with the best validation accuracy; None without a validation split."""
    rated = [(row.validation_accuracy, -row.epoch) for row in metrics if row.validation_accuracy is not None]
    return -max(rated)[1] if rated else None


def write_metrics(path: str | os.PathLike[str], metrics: Iterable[EpochMetrics]) -> None:
    """Write one JSON line an epoch, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(to_plain(row)) + "\n" for row in metrics), encoding="utf-8")


def read_metrics(path: str | os.PathLike[str]) -> tuple[EpochMetrics, ...]:
    """Read the epochs of a run, finished or not.

    Args:
        path: Its ``metrics.jsonl``.

    Returns:
        The epochs; none if there is no such file.

    Raises:
        RunFolderError: If the file is damaged.
    """
    if not Path(path).exists():
        return ()
    lines = read_json_lines(path, error=RunFolderError)
    rows = tuple(read(EpochMetrics, line, source=path, error=RunFolderError) for line in lines)
    epochs = [row.epoch for row in rows]
    if epochs not in ([0], list(range(1, len(rows) + 1))):
        raise RunFolderError(
            f"{os.fspath(path)} must hold the epochs from 1 on, one a line. Restore it, or train again."
        )
    return rows


def write_result(folder: TrainingFolder, result: TrainingResult) -> None:
    """Write the result's numbers, whole or not at all; the epochs' metrics have a file of their own."""
    values = to_plain(result)
    del values["metrics"]
    write_json(folder.result, values)


def read_result(root: str | os.PathLike[str]) -> TrainingResult | None:
    """The result of a finished run.

    Args:
        root: Its folder.

    Returns:
        The result; None if no run has finished there.

    Raises:
        RunFolderError: If a file of it is damaged.
    """
    folder = TrainingFolder(Path(root))
    if not folder.result.exists():
        return None
    values, metrics = read_json(folder.result, error=RunFolderError), read_metrics(folder.metrics)
    if isinstance(values, dict):
        values["metrics"] = metrics
    result = read(TrainingResult, values, source=folder.result, error=RunFolderError)
    epochs = [row.epoch for row in metrics]
    if epochs[-1:] != [result.last_epoch] or result.chosen_epoch not in (None, *epochs):
        raise RunFolderError(
            f"{folder.metrics} holds {len(metrics)} epochs, {folder.result.name} tells of {result.last_epoch}. Restore "
            "them, or train again."
        )
    return result
