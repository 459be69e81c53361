"""The settings of every method, chosen on the validation split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TypeAlias

from sensitune.sweeps._jobs import Job, make_job
from sensitune.sweeps._key import RunKey, Setting, describe
from sensitune.sweeps._sweep_config import SweepConfig
from sensitune.training import read_result

Choices: TypeAlias = Mapping[tuple[str, str], Setting]
"""(task, method) -> what was chosen."""
Reached: TypeAlias = Mapping[tuple[str, str], Mapping[str, float]]
"""(task, method) -> setting as `describe` writes it -> mean validation accuracy of the last epoch, in [0, 1]."""


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
    return [
        make_job(config, root, RunKey(task, method, setting, seed), test=False)
        for seed in config.choose_seeds
        for task in config.choose_tasks or config.sources
        for method in config.methods
        for setting in settings
    ]


def validation_accuracies(config: SweepConfig, root: Path) -> Reached:
    """What the runs for choosing have reached: the mean over their seeds of the last epoch's validation accuracy.

    Args:
        config: The sweep.
        root: Its folder.

    Returns:
        (task, method) -> setting -> accuracy; a setting of which a run is missing is left out.

    Raises:
        RunFolderError: If a finished run has other settings.
    """
    reached: dict[tuple[str, str], dict[str, list[float]]] = {}
    for job in choosing_jobs(config, root):
        values = reached.setdefault((job.key.task, job.key.method), {}).setdefault(describe(job.key.setting), [])
        accuracy = _validation_accuracy(job)
        if accuracy is not None:
            values.append(accuracy)
    needed = len(config.choose_seeds)
    return {
        pair: {name: fmean(values) for name, values in found.items() if len(values) == needed}
        for pair, found in reached.items()
    }


def _validation_accuracy(job: Job) -> float | None:
    """A training that diverged counts as 0."""
    if not job.finished:
        return None
    result = read_result(job.folder) if job.diverged is None else None
    return 0.0 if result is None else result.validation_accuracy_last


def choose_settings(config: SweepConfig, reached: Reached) -> Choices:
    """The best setting of every method, for each task or for all.

    Args:
        config: The sweep.
        reached: From `validation_accuracies`.

    Returns:
        The choices; one is left out while one of the runs it needs is missing.
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
