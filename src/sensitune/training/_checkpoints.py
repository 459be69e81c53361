"""What an interrupted training goes on from: which checkpoint, and whether it is one of the same training."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensitune._schema import NonNegative, PositiveInt, Seed, load, read, read_json, to_plain, write_json
from sensitune.errors import RunFolderError
from sensitune.training._recipe import Recipe
from sensitune.training._result import EpochMetrics, TrainingFolder, chosen_epoch, read_metrics
from sensitune.training._weights import is_whole

_SAVED_BY_TORCH = ("optimizer.pt", "scheduler.pt")
_RANDOM_STATES = "rng_state*.pth"  # one, or one for each of several processes


@dataclass(frozen=True)
class TrainingSetting:
    """What an interrupted run can only go on with; the content of ``checkpoints/recipe.json``."""

    recipe: Recipe
    seed: Seed
    num_train_images: PositiveInt

    def flat(self) -> dict[str, Any]:
        """Every setting by its name."""
        return self.recipe.to_dict() | {"seed": self.seed, "num_train_images": self.num_train_images}


@dataclass(frozen=True)
class _TrainerState:
    """What is read of the trainer's own ``trainer_state.json``."""

    epoch: NonNegative


def open_checkpoints(folder: TrainingFolder, setting: TrainingSetting, *, resume: bool) -> int | None:
    """Make the checkpoints' folder.

    Args:
        folder: The training's folder.
        setting: What it trains with.
        resume: False removes what is there.

    Returns:
        The epoch that the last checkpoint ends; None for a start from scratch. A checkpoint that is incomplete, or to
        whose epochs the metrics are missing, does not count and is removed.

    Raises:
        RunFolderError: If the checkpoints are those of another setting, or the record of it is damaged.
    """
    if not resume:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    record = folder.checkpoints / "recipe.json"
    if record.exists():
        _refuse_other(load(TrainingSetting, record, error=RunFolderError), setting, folder.checkpoints)
    else:
        write_json(record, to_plain(setting))
    done = {checkpoint: _epochs_done(checkpoint) for checkpoint in folder.checkpoints.glob("checkpoint-*")}
    metrics = _metrics_so_far(folder)
    for checkpoint, epochs in done.items():
        if epochs is None or not _goes_with(folder, metrics, epochs):
            shutil.rmtree(checkpoint)  # the trainer would take it for the newest, and remove the others
            done[checkpoint] = None
    return max((epochs for epochs in done.values() if epochs is not None), default=None)


def last_checkpoint(folder: TrainingFolder) -> str | None:
    """The newest of the checkpoints that `open_checkpoints` has left."""
    found = list(folder.checkpoints.glob("checkpoint-*"))
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None


def _metrics_so_far(folder: TrainingFolder) -> tuple[EpochMetrics, ...]:
    try:
        return read_metrics(folder.metrics)
    except RunFolderError:
        return ()


def _goes_with(folder: TrainingFolder, metrics: Sequence[EpochMetrics], epochs: int) -> bool:
    """Whether the metrics of a checkpoint's epochs are there, and the weights that they choose."""
    chosen = chosen_epoch(metrics[:epochs])
    return len(metrics) >= epochs and (chosen is None or is_whole(folder.candidate(chosen)))


def _refuse_other(recorded: TrainingSetting, asked: TrainingSetting, checkpoints: Path) -> None:
    before, now = recorded.flat(), asked.flat()
    different = [name for name in now if before[name] != now[name]]
    if different:
        name = different[0]
        raise RunFolderError(
            f"{checkpoints} holds a run with `{name}` {before[name]}, not {now[name]}. "
            "Train with the same recipe, to another folder, or with `resume=False`."
        )


def _epochs_done(checkpoint: Path) -> int | None:
    """The epochs that a checkpoint holds; None if a part of it is missing or breaks off."""
    states = list(checkpoint.glob(_RANDOM_STATES))
    parts = [*(checkpoint / name for name in _SAVED_BY_TORCH), *states]
    if not is_whole(checkpoint) or not states or not all(map(zipfile.is_zipfile, parts)):
        return None
    path = checkpoint / "trainer_state.json"
    try:
        values = read_json(path, error=RunFolderError)
        known = {"epoch": values["epoch"]} if isinstance(values, dict) and "epoch" in values else {}
        return round(read(_TrainerState, known, source=path, error=RunFolderError).epoch) or None
    except RunFolderError:
        return None
