"""What an interrupted training goes on from: which checkpoint, and whether it is one of the same training."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensitune._schema import NonNegative, PositiveInt, Seed, load, read, read_json, to_plain, write_json
from sensitune.errors import RunFolderError
from sensitune.training._recipe import Recipe
from sensitune.training._result import EpochMetrics, TrainingFolder, read_metrics


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
        The epoch that the last checkpoint ends; None for a start from scratch.

    Raises:
        RunFolderError: If the checkpoints are those of another setting, or damaged.
    """
    if not resume:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    record = folder.checkpoints / "recipe.json"
    if record.exists():
        _refuse_other(load(TrainingSetting, record, error=RunFolderError), setting, folder.checkpoints)
    else:
        write_json(record, to_plain(setting))
    last = last_checkpoint(folder)
    return None if last is None else _epochs_done(last)


def metrics_so_far(folder: TrainingFolder, epochs: int) -> list[EpochMetrics]:
    """The metrics of the epochs that are not trained again.

    Args:
        folder: The training's folder.
        epochs: How many that are.

    Returns:
        As many.

    Raises:
        RunFolderError: If the file lacks some, or is damaged.
    """
    found = list(read_metrics(folder.metrics)) if epochs else []
    if len(found) < epochs:
        raise RunFolderError(
            f"{folder.metrics} holds {len(found)} epochs, the last checkpoint {epochs}. Restore it, or train with "
            "`resume=False`."
        )
    return found[:epochs]


def last_checkpoint(folder: TrainingFolder) -> str | None:
    """The newest complete checkpoint: the trainer writes its state last."""
    complete = [path.parent for path in folder.checkpoints.glob("checkpoint-*/trainer_state.json")]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None


def _refuse_other(recorded: TrainingSetting, asked: TrainingSetting, checkpoints: Path) -> None:
    before, now = recorded.flat(), asked.flat()
    different = [name for name in now if before[name] != now[name]]
    if different:
        name = different[0]
        raise RunFolderError(
            f"{checkpoints} holds a run with `{name}` {before[name]}, not {now[name]}. "
            "Train with the same recipe, to another folder, or with `resume=False`."
        )


def _epochs_done(checkpoint: str) -> int:
    path = Path(checkpoint) / "trainer_state.json"
    values = read_json(path, error=RunFolderError)
    known = {"epoch": values["epoch"]} if isinstance(values, dict) and "epoch" in values else {}
    return round(read(_TrainerState, known, source=path, error=RunFolderError).epoch)
