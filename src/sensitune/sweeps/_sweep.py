"""A sweep from start to end: choose the settings on the validation split, train what is tested, collect the results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sensitune._files import atomic_write
from sensitune.errors import ArgumentError
from sensitune.runs import RunFolder
from sensitune.sweeps._jobs import Job, JobOutcome
from sensitune.sweeps._sweep_config import Setting, SweepConfig, describe, slug
from sensitune.sweeps.engines._run_jobs import EngineSettings, run_jobs
from sensitune.training import AdapterManifest, read_result

Choices = Mapping[tuple[str, str], Setting]


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep that was tested.

    Attributes:
        task: The task.
        method: Label of the method.
        seed: The seed.
        setting: What was chosen on the validation split.
        accuracy: Test accuracy of the last epoch, in [0, 1].
        validation_accuracy: Validation accuracy of the last epoch; None if it trained on those images too.
        trainable_params: Scalars that trained, the head not counted.
        seconds: Seconds of training.
        folder: The run folder, relative to the sweep's.
    """

    task: str
    method: str
    seed: int
    setting: Setting
    accuracy: float
    validation_accuracy: float | None
    trainable_params: int
    seconds: float
    folder: str


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found so far.

    Attributes:
        config: The sweep.
        runs: The runs that were tested.
        num_runs: How many there are to be.
        failed: What went wrong, by the name of the run.
        validation: (task, method) -> setting as text -> mean validation accuracy of the last epoch.
    """

    config: SweepConfig
    runs: tuple[SweepRun, ...]
    num_runs: int
    failed: Mapping[str, str]
    validation: Mapping[tuple[str, str], Mapping[str, float]]

    @property
    def complete(self) -> bool:
        """Whether every run was tested."""
        return len(self.runs) == self.num_runs

    def accuracies(self, method: str) -> dict[str, list[float]]:
        """Task -> test accuracies of a method by seed; only tasks whose seeds are all there."""
        by_task: dict[str, list[float]] = {}
        for run in sorted(self.runs, key=lambda run: run.seed):
            if run.method == method:
                by_task.setdefault(run.task, []).append(run.accuracy)
        return {task: values for task, values in by_task.items() if len(values) == len(self.config.seeds)}

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "complete": self.complete,
            "num_runs": self.num_runs,
            "runs": [asdict(run) for run in self.runs],
            "failed": dict(self.failed),
            "validation": [
                {"task": task, "method": method, "accuracy": dict(found)}
                for (task, method), found in self.validation.items()
            ],
        }


def run_sweep(
    config: SweepConfig,
    path: str | os.PathLike[str],
    *,
    engine: EngineSettings | None = None,
    on_done: Callable[[JobOutcome, int, int], None] | None = None,
) -> SweepResult:
    """Run what is left of a sweep; a run that is finished is never repeated.

    First every combination of `SweepConfig.choose` trains on the training split and is rated on the validation split.
    Then the best of each trains with every seed, and is tested once. Runs that fail do not stop the others.

    Args:
        config: The sweep.
        path: Its folder: ``runs/TASK/METHOD/SETTING/seedN``, ``results.json``, and, until every run is finished, the
            shared ``scores/``.
        engine: Where runs are computed; None = one after the other in this process.
        on_done: Is told of every run that ends: its outcome, how many have ended, how many there are in the phase.

    Returns:
        The results, which are in ``results.json`` too.

    Raises:
        ArgumentError: If `path` is a file, or a folder of something else.
        RunFolderError: If a finished run in it has other settings.
    """
    root = Path(path)
    _check_folder(root)
    (root / "runs").mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    for jobs in (choosing_jobs, final_jobs):
        _run_phase(jobs(config, root), engine or EngineSettings(), failed, on_done)
    result = collect(config, root, failed=failed)
    if result.complete:
        _remove_scores([*choosing_jobs(config, root), *final_jobs(config, root)])
    with atomic_write(root / "results.json") as temporary:
        temporary.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
    return result


def _check_folder(root: Path) -> None:
    if root.is_file():
        raise ArgumentError(f"A sweep's folder cannot be a file. Got {root}.")
    if root.is_dir() and any(root.iterdir()) and not (root / "runs").is_dir():
        raise ArgumentError(f"{root} is not empty and not a sweep's folder (it has no runs/). Choose another.")


def _remove_scores(jobs: Sequence[Job]) -> None:
    """They are large, and of no use to finished runs."""
    for job in jobs:
        for scoring in job.config.scoring.sufficient():
            (job.scores / scoring.file_name).unlink(missing_ok=True)
        with suppress(OSError):  # others are left, or none were there
            job.scores.rmdir()


def planned_runs(config: SweepConfig, path: str | os.PathLike[str]) -> list[tuple[str, int, int]]:
    """What a sweep would run.

    Args:
        config: The sweep.
        path: Its folder.

    Returns:
        For each phase what it is for, how many runs are left, and how many it has.

    Raises:
        RunFolderError: If a finished run has other settings.
    """
    root = Path(path)
    choosing = choosing_jobs(config, root)
    left = sum(not job.finished for job in choosing)
    total = len(config.sources) * len(config.methods) * len(config.seeds)
    tested = sum(job.finished for job in final_jobs(config, root))
    return [("choose settings with", left, len(choosing)), ("test", total - tested, total)]


def _run_phase(
    jobs: Sequence[Job],
    engine: EngineSettings,
    failed: dict[str, str],
    on_done: Callable[[JobOutcome, int, int], None] | None,
) -> None:
    todo = {job.name: job for job in jobs if not job.finished}
    ended = 0

    def note(outcome: JobOutcome) -> None:
        nonlocal ended
        ended += 1
        if outcome.error is not None and todo[outcome.name].diverged is None:
            failed[outcome.name] = outcome.error
        if on_done is not None:
            on_done(outcome, ended, len(todo))

    run_jobs(list(todo.values()), engine, on_done=note)


def choosing_jobs(config: SweepConfig, root: Path) -> list[Job]:
    """The runs that settings are chosen with; none where there is nothing to choose.

    Args:
        config: The sweep.
        root: Its folder.

    Returns:
        The jobs, all tasks and methods of a seed before the next seed.
    """
    settings = config.candidates()
    if len(settings) == 1:
        return []
    tasks = config.choose_tasks or tuple(config.sources)
    return [
        _job(config, root, task, method, setting, seed, retrain=False, test=False)
        for seed in config.choose_seeds
        for task in tasks
        for method in config.methods
        for setting in settings
    ]


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
        _job(config, root, task, method, choices[task, method], seed, retrain=config.retrain, test=True)
        for seed in config.seeds
        for task, method in config.pairs()
        if (task, method) in choices
    ]


def _job(
    config: SweepConfig, root: Path, task: str, method: str, setting: Setting, seed: int, *, retrain: bool, test: bool
) -> Job:
    parts = (task, slug(method), describe(setting) + (",retrained" if retrain else ""), f"seed{seed}")
    return Job(
        name="/".join(parts),
        folder=root.joinpath("runs", *parts),
        config=config.run_config(method, task, setting, seed=seed, retrain=retrain),
        scores=root / "scores",
        test=test,
    )


def validation_accuracies(config: SweepConfig, root: Path) -> dict[tuple[str, str], dict[str, float]]:
    """What the runs for choosing have reached: the mean over their seeds of the last epoch's validation accuracy.

    Args:
        config: The sweep.
        root: Its folder.

    Returns:
        (task, method) -> setting as text -> accuracy in [0, 1]; a setting of which a run is missing is left out.

    Raises:
        RunFolderError: If a finished run has other settings.
    """
    reached: dict[tuple[str, str], dict[str, list[float]]] = {}
    for job in choosing_jobs(config, root):
        result = read_result(job.folder) if job.finished else None
        task, method, setting, _ = job.name.split("/")
        values = reached.setdefault((task, method), {}).setdefault(setting, [])
        if job.diverged is not None:
            values.append(0.0)
        elif result is not None and result.validation_accuracy_last is not None:
            values.append(result.validation_accuracy_last)
    slugs = {slug(label): label for label in config.methods}
    needed = len(config.choose_seeds)
    return {
        (task, slugs[method]): {name: fmean(values) for name, values in found.items() if len(values) == needed}
        for (task, method), found in reached.items()
    }


def choose_settings(
    config: SweepConfig, reached: Mapping[tuple[str, str], Mapping[str, float]]
) -> dict[tuple[str, str], Setting]:
    """The best setting of every method, for each task or for all.

    Args:
        config: The sweep.
        reached: From `validation_accuracies`.

    Returns:
        (task, method) -> setting; left out while one of the runs it needs is missing.
    """
    settings = {describe(setting): setting for setting in config.candidates()}
    if len(settings) == 1:
        return dict.fromkeys(config.pairs(), next(iter(settings.values())))
    choices: dict[tuple[str, str], Setting] = {}
    for task, method in config.pairs():
        deciding = [task] if config.choose_by == "task" else config.choose_tasks or tuple(config.sources)
        found = [reached.get((each, method), {}) for each in deciding]
        if all(len(each) == len(settings) for each in found):
            means = {name: fmean(each[name] for each in found) for name in settings}
            choices[task, method] = settings[max(means, key=lambda name: means[name])]
    return choices


def collect(
    config: SweepConfig, path: str | os.PathLike[str], *, failed: Mapping[str, str] | None = None
) -> SweepResult:
    """What a sweep's folder holds, without running anything.

    Args:
        config: The sweep.
        path: Its folder.
        failed: What went wrong, by the name of the run.

    Returns:
        The results so far.

    Raises:
        RunFolderError: If a finished run has other settings.
    """
    root = Path(path)
    reached = validation_accuracies(config, root)
    choices = choose_settings(config, reached)
    methods = {slug(label): label for label in config.methods}
    jobs = final_jobs(config, root, choices)
    runs = _tested(jobs, root, choices, methods)
    diverged = {job.name: job.diverged for job in jobs if job.diverged is not None}
    num_runs = len(config.sources) * len(config.methods) * len(config.seeds)
    return SweepResult(config, tuple(runs), num_runs, {**diverged, **(failed or {})}, reached)


def _tested(jobs: Iterable[Job], root: Path, choices: Choices, methods: Mapping[str, str]) -> list[SweepRun]:
    runs = []
    for job in jobs:
        result = read_result(job.folder) if job.finished else None
        if result is None or job.test_accuracy is None:
            continue
        task, method, _, _ = job.name.split("/")
        manifest = AdapterManifest.load(RunFolder(job.folder, job.config).training.adapter)
        runs.append(
            SweepRun(
                task=task,
                method=methods[method],
                seed=job.config.seed,
                setting=choices[task, methods[method]],
                accuracy=job.test_accuracy,
                validation_accuracy=result.validation_accuracy_last,
                trainable_params=manifest.origin.trainable_params,
                seconds=result.seconds,
                folder=str(job.folder.relative_to(root)),
            )
        )
    return runs
