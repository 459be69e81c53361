"""A run on disk: its settings, and the names of what its stages write."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sensitune._files import atomic_write
from sensitune._schema import dump_yaml, load, to_plain, write_json
from sensitune.errors import RunFolderError
from sensitune.runs._config import RECORDED_KEY, RunConfig
from sensitune.runs._evaluation import RecordedEvaluation
from sensitune.runs._settings import DeviceName
from sensitune.training import TrainingFolder

_PACKAGES = ("sensitune", "torch", "torchvision", "timm", "peft", "transformers", "accelerate", "datasets")
# Where a run is computed does not make it another run.
_FREE_SETTINGS = frozenset({"compute"})
# Nor does it matter to a finished run where its images lie by now.
_FREE_WHEN_FINISHED = _FREE_SETTINGS | {"data.root"}


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
    evaluation = _Named("evaluation.json")
    """The fourth stage's result."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], config: RunConfig) -> RunFolder:
        """Make a run's folder, or come back to one of the same settings, or take over one that holds nothing else.

        Args:
            path: The folder.
            config: The settings. The group ``compute`` may differ from the recorded one.

        Returns:
            The run folder.

        Raises:
            RunFolderError: If the folder holds another run (the differing settings are named) or something else.
        """
        folder = cls(Path(path), config)
        # Another worker may be making the same folder: its temporary files are nobody's content.
        names = (
            [] if not folder.path.is_dir() else [e.name for e in folder.path.iterdir() if not e.name.startswith(".")]
        )
        if folder.path.is_file() or (names and folder.settings.name not in names):
            raise RunFolderError(f"{folder.path} is not empty and not a run folder (no run.yaml). Choose another.")
        # A run that never got anywhere has left its settings alone: they may have been the mistake.
        if names and names != [folder.settings.name]:
            _refuse_other_run(folder, _FREE_SETTINGS)
            return folder
        with atomic_write(folder.settings) as temporary:
            values = config.to_dict() | {RECORDED_KEY: _surroundings()}
            temporary.write_text(dump_yaml(values), encoding="utf-8")
        return folder

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
    _refuse_other_run(folder, _FREE_WHEN_FINISHED)


def _refuse_other_run(folder: RunFolder, free: frozenset[str]) -> None:
    recorded, asked = RunConfig.from_yaml(folder.settings).to_dict(), folder.config.to_dict()
    if named := list(_differences(recorded, asked, free)):
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


def _surroundings() -> dict[str, Any]:
    return {"versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}}
