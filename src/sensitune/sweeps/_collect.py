"""What a sweep has found: every tested run, what failed, and what was reached on the validation split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sensitune._schema import (
    NonEmptyText,
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    UnitInterval,
    load,
    to_plain,
    write_json,
)
from sensitune.runs import RunFolder
from sensitune.sweeps._choose import Choices, Reached, choose_settings, choosing_jobs, validation_accuracies
from sensitune.sweeps._jobs import Job, make_job
from sensitune.sweeps._key import RunKey
from sensitune.sweeps._sweep_config import SweepConfig
from sensitune.training import AdapterManifest, read_result


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep that was tested.

    Attributes:
        key: Which run it is.
        accuracy: Test accuracy of the last epoch, in [0, 1].
        validation_accuracy: Validation accuracy of the last epoch; None if it trained on those images too.
        trainable_params: Scalars that trained, the head not counted.
        seconds: Seconds of training.
        folder: The run folder, relative to the sweep's.
        num_test_images: How many images it was tested on; None if that was not written down.
    """

    key: RunKey
    accuracy: UnitInterval
    validation_accuracy: UnitInterval | None
    trainable_params: NonNegativeInt
    seconds: NonNegative
    folder: str
    num_test_images: PositiveInt | None = None


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found so far.

    Attributes:
        config: The sweep.
        runs: The runs that were tested.
        num_runs: How many there are to be.
        failed: What went wrong.
        validation: (task, method) -> setting as text -> mean validation accuracy of the last epoch.
    """

    config: SweepConfig
    runs: tuple[SweepRun, ...]
    num_runs: int
    failed: Mapping[RunKey, str]
    validation: Reached

    @property
    def complete(self) -> bool:
        """Whether every run was tested."""
        return len(self.runs) == self.num_runs

    def accuracies(self, method: str) -> dict[str, list[float]]:
        """Task -> test accuracies of a method by seed; only tasks whose seeds are all there."""
        by_task: dict[str, list[float]] = {}
        for run in sorted(self.runs, key=lambda run: run.key.seed):
            if run.key.method == method:
                by_task.setdefault(run.key.task, []).append(run.accuracy)
        return {task: values for task, values in by_task.items() if len(values) == len(self.config.seeds)}

    @property
    def record(self) -> SweepRecord:
        """What ``results.json`` holds of it."""
        return SweepRecord(
            complete=self.complete,
            num_runs=self.num_runs,
            runs=self.runs,
            failed=tuple(FailedRun(key, error) for key, error in self.failed.items()),
            validation=tuple(TriedSettings(*pair, found) for pair, found in self.validation.items()),
        )


@dataclass(frozen=True)
class FailedRun:
    """A run without a result.

    Attributes:
        key: Which run it is.
        error: What went wrong.
    """

    key: RunKey
    error: str


@dataclass(frozen=True)
class TriedSettings:
    """What a method has reached on a task's validation split.

    Attributes:
        task: The task.
        method: Label of the method.
        accuracy: Setting as text -> mean validation accuracy of the last epoch.
    """

    task: NonEmptyText
    method: NonEmptyText
    accuracy: Mapping[str, UnitInterval]


@dataclass(frozen=True)
class SweepRecord:
    """The content of ``results.json``.

    Attributes:
        complete: Whether every run was tested.
        num_runs: How many there are to be.
        runs: The runs that were tested.
        failed: Those that failed or diverged.
        validation: What the settings that were tried have reached.
    """

    complete: bool
    num_runs: NonNegativeInt
    runs: tuple[SweepRun, ...]
    failed: tuple[FailedRun, ...]
    validation: tuple[TriedSettings, ...]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON.

        Args:
            path: The file.
        """
        write_json(path, to_plain(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SweepRecord:
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The record.

        Raises:
            ConfigError: If it is missing or damaged.
        """
        return load(cls, path)


def final_jobs(config: SweepConfig, root: Path, choices: Choices | None = None) -> list[Job]:
    """The runs that are tested, of every method whose setting is chosen.

    Args:
        config: The sweep.
        root: Its folder.
        choices: From `choose_settings`; None = read what it needs from the folder.

    Returns:
        The jobs, all tasks and methods of a seed before the next seed.
    """
    if choices is None:
        choices = choose_settings(config, validation_accuracies(config, root))
    return [
        make_job(config, root, RunKey(task, method, choices[task, method], seed, config.retrain), test=True)
        for seed in config.seeds
        for task, method in config.pairs()
        if (task, method) in choices
    ]


def collect(
    config: SweepConfig, path: str | os.PathLike[str], *, failed: Mapping[RunKey, str] | None = None
) -> SweepResult:
    """What a sweep's folder holds, without running anything.

    Args:
        config: The sweep.
        path: Its folder.
        failed: What went wrong besides.

    Returns:
        The results so far.

    Raises:
        RunFolderError: If a finished run has other settings.
    """
    root = Path(path)
    reached = validation_accuracies(config, root)
    jobs = final_jobs(config, root, choose_settings(config, reached))
    without = {job.key: job.damage for job in choosing_jobs(config, root)}
    without |= {job.key: job.damage or job.diverged for job in jobs}
    told = {key: why for key, why in without.items() if why is not None} | dict(failed or {})
    return SweepResult(config, tuple(_tested(jobs, root)), num_tested(config), told, reached)


def num_tested(config: SweepConfig) -> int:
    """How many runs of a sweep are to be tested."""
    return len(config.sources) * len(config.methods) * len(config.seeds)


def _tested(jobs: Iterable[Job], root: Path) -> list[SweepRun]:
    runs = []
    for job in jobs:
        if not job.finished:
            continue
        result, tested = read_result(job.folder), job.tested
        if result is None or tested is None:
            continue
        manifest = AdapterManifest.load(RunFolder(job.folder, job.config).training.adapter)
        runs.append(
            SweepRun(
                key=job.key,
                accuracy=tested.accuracy,
                validation_accuracy=result.validation_accuracy_last,
                trainable_params=manifest.origin.trainable_params,
                seconds=result.seconds,
                folder=str(job.folder.relative_to(root)),
                num_test_images=tested.num_images,
            )
        )
    return runs
