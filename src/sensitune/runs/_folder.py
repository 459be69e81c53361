"""A run on disk: its settings, and the names of what its stages write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from sensitune._files import atomic_write
from sensitune._lock import one_writer
from sensitune._processes import Processes
from sensitune._schema import dump_yaml, load, to_plain, write_json
from sensitune.errors import RunFolderError
from sensitune.runs._config import RECORDED_KEY, RunConfig
from sensitune.runs._evaluation import RecordedEvaluation
from sensitune.runs._launch import surroundings
from sensitune.runs._settings import DeviceName
from sensitune.training import Recipe, TrainingFolder

# Where a run is computed does not make it another run.
_FREE_SETTINGS = frozenset({"compute"})
# Nor does it matter to a finished run where its images lie by now.
_FREE_WHEN_FINISHED = _FREE_SETTINGS | {"data.root"}
# How a run is trained is nobody's business yet where nothing of a training is kept: it was interrupted, or diverged.
# Where its head starts is: the scores were taken with it.
_FREE_BEFORE_TRAINING = _FREE_SETTINGS | {f"recipe.{each.name}" for each in fields(Recipe) if each.name != "head_start"}


class _Named:
    """A file of the folder by its name, as a path."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: RunFolder, owner: type[RunFolder]) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """One run's folder; make one with `open` or `load`.

    It holds what is named below, and of the third stage ``adapter/``, ``adapter_chosen/``, ``metrics.jsonl`` and
    ``training.json``.

    Attributes:
        path: The folder.
        config: The run's settings.
    """

    path: Path
    config: RunConfig

    settings = _Named("run.yaml")
    """Every setting, and the versions it ran with."""
    sensitivity = _Named("sensitivity.safetensors")
    """The first stage's result, unless it is shared with other runs."""
    allocation = _Named("allocation.safetensors")
    """The second stage's result, of a method that places something."""
    lora_start = _Named("lora_start.safetensors")
    """Where the LoRAs start, if not at random."""
    choice = _Named("choice.json")
    """What a run of the method auto has tried and chosen."""
    candidates = _Named("candidates")
    """The run folders of what it tries."""
    evaluation = _Named("evaluation.json")
    """The fourth stage's result."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], config: RunConfig) -> RunFolder:
        """Make a run's folder, or come back to one of the same settings.

        What a mistake has left is taken over: a folder that holds settings alone with any settings; one whose training
        has not ended an epoch, or diverged, with another recipe; one whose scores are all there is with another
        allocation that takes the same scores.

        Args:
            path: The folder.
            config: The settings. The group ``compute`` may differ from the recorded one.

        Returns:
            The run folder.

        Raises:
            RunFolderError: If the folder holds another run (the differing settings are named) or something else, or
                another process works there.
        """
        folder = cls(Path(path), config)
        with folder.writing():
            if not folder.is_of_this_run():
                folder.write_settings()
        return folder

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one who works in the folder; within one thread as often as it likes.

        On entry what killed processes have left is removed. Of processes that work together the first holds it.

        Yields:
            Nothing.

        Raises:
            RunFolderError: If the folder is none of a run's, or another process works there.
        """
        with ExitStack() as held:
            Processes.found().first(lambda: self._hold(held))
            yield

    def _hold(self, held: ExitStack) -> None:
        self._names()
        held.enter_context(one_writer(self.path))

    def _names(self) -> set[str]:
        """What the folder holds, refused if that is not a run."""
        # Hidden files are nobody's content: the lock, and what a killed process has left.
        found = self.path.iterdir() if self.path.is_dir() else ()
        names = {each.name for each in found if not each.name.startswith(".")}
        if self.path.is_file() or (names and self.settings.name not in names):
            raise RunFolderError(f"{self.path} is not empty and not a run folder (no run.yaml). Choose another.")
        return names

    def is_of_this_run(self) -> bool:
        """Whether the folder holds these settings already; otherwise they may be written.

        Returns:
            False if the folder is missing or empty, or what it holds is good for these settings too.

        Raises:
            RunFolderError: If it holds another run, or something else.
        """
        names = self._names()
        # A run that never got anywhere has left its settings alone: they may have been the mistake.
        if names <= {self.settings.name}:
            return False
        recorded = self._recorded()
        _refuse_other_run(self, recorded, self._free(names, recorded))
        return not list(_differences(recorded.to_dict(), self.config.to_dict(), _FREE_SETTINGS))

    def _free(self, names: set[str], recorded: RunConfig) -> frozenset[str]:
        """What may differ from the recorded settings: all that nothing here was made from."""
        training = self.training
        if {training.result.name, self.candidates.name} & names or any(training.checkpoints.glob("checkpoint-*")):
            return _FREE_SETTINGS
        scored_alike = self.sensitivity.name not in names or recorded.scoring == self.config.scoring
        if self.allocation.name not in names and scored_alike:
            return _FREE_BEFORE_TRAINING | {"allocation"}
        return _FREE_BEFORE_TRAINING

    def _recorded(self) -> RunConfig:
        return RunConfig.from_yaml(self.settings)

    def write_settings(self) -> None:
        """Write ``run.yaml``, and let go of a training that has not ended an epoch."""
        shutil.rmtree(self.training.checkpoints, ignore_errors=True)
        with atomic_write(self.settings) as temporary:
            values = self.config.to_dict() | {RECORDED_KEY: {"versions": surroundings()}}
            temporary.write_text(dump_yaml(values), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: DeviceName | None = None) -> RunFolder:
        """Come back to a run.

        Args:
            path: Its folder.
            device: Where it goes on; None is the recorded setting.

        Returns:
            The run folder with the recorded settings.

        Raises:
            RunFolderError: If it is not a run folder.
        """
        settings = Path(path) / "run.yaml"
        if not settings.is_file():
            raise RunFolderError(
                f"{os.fspath(path)} is not a run folder: it has no run.yaml. Start with `sensitune run`."
            )
        config = RunConfig.from_yaml(settings)
        if device is not None:
            config = replace(config, compute=replace(config.compute, device=device))
        return cls(Path(path), config)

    @property
    def training(self) -> TrainingFolder:
        """The third stage's results: adapters, metrics, numbers."""
        return TrainingFolder(self.path)

    def remove_checkpoints(self) -> None:
        """Remove what a finished training went on from: it was killed before it could do so itself."""
        if self.training.checkpoints.exists() and self.training.result.exists():
            with self.writing():
                shutil.rmtree(self.training.checkpoints)

    def write_evaluation(self, found: RecordedEvaluation) -> None:
        """Write ``evaluation.json``.

        Args:
            found: What was found.
        """
        write_json(self.evaluation, to_plain(found))

    def read_evaluation(self) -> RecordedEvaluation | None:
        """What ``evaluation.json`` holds.

        Returns:
            It; None if there is none.

        Raises:
            RunFolderError: If it is damaged.
        """
        if not self.evaluation.exists():
            return None
        return load(RecordedEvaluation, self.evaluation, error=RunFolderError)


@cache
def check_finished(folder: RunFolder) -> None:
    """Make sure that a finished run has the settings it is asked for with; a folder that passed is not read again.

    Args:
        folder: The run.

    Raises:
        RunFolderError: If it has other settings than the recorded ones, but for ``compute`` and ``data.root``.
    """
    _refuse_other_run(folder, RunConfig.from_yaml(folder.settings), _FREE_WHEN_FINISHED)


def _refuse_other_run(folder: RunFolder, recorded: RunConfig, free: frozenset[str]) -> None:
    if named := list(_differences(recorded.to_dict(), folder.config.to_dict(), free)):
        raise RunFolderError(
            f"{folder.path} holds a run with other settings: {', '.join(named)}. "
            "Choose another folder, or the recorded settings."
        )


def _differences(recorded: Any, asked: Any, free: frozenset[str], name: str = "") -> Iterator[str]:
    """What differs, by dotted names, but for what is free to."""
    if recorded == asked or name in free:
        return
    if isinstance(recorded, dict) and isinstance(asked, dict):
        for key in recorded | asked:
            yield from _differences(recorded.get(key), asked.get(key), free, f"{name}.{key}" if name else key)
    else:
        yield f"`{name}` is {recorded!r}, not {asked!r}"
