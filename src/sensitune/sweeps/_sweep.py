"""A sweep from start to end: choose the settings on the validation split, train what is tested, collect the results."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from sensitune._files import remove_leftovers
from sensitune._lock import one_writer
from sensitune.errors import ArgumentError, SensituneError
from sensitune.runs import RunFolder
from sensitune.sweeps._choose import choosing_jobs
from sensitune.sweeps._collect import SweepResult, collect, final_jobs, num_tested
from sensitune.sweeps._jobs import Job, JobOutcome, run_job
from sensitune.sweeps._key import RunKey
from sensitune.sweeps._sweep_config import SweepConfig
from sensitune.sweeps.engines import EngineSettings, RunFunction, run_jobs
from sensitune.training import check_precision

SETTINGS_FILE = "sweep.yaml"
"""Of a sweep's folder: what it was made from, so that the folder alone tells it."""


def run_sweep(
    config: SweepConfig,
    path: str | os.PathLike[str],
    *,
    engine: EngineSettings | None = None,
    on_done: Callable[[JobOutcome, int, int], None] | None = None,
    run: RunFunction = run_job,
) -> SweepResult:
    """Run what is left of a sweep; a run that is finished is never repeated.

    First every combination of `SweepConfig.choose` trains on the training split and is rated on the validation split.
    Then the best of each trains with every seed, and is tested once. Runs that fail do not stop the others.

    Args:
        config: The sweep.
        path: Its folder: ``runs/TASK/METHOD/SETTING/seedN``, ``sweep.yaml``, ``results.json``, and, until every run is
            finished, the shared ``scores/``.
        engine: Where runs are computed; None = one after the other in this process.
        on_done: Is told of every run that ends: its outcome, how many have ended, how many there are in the phase.
        run: Runs one job, and leaves what `run_job` leaves; a function that other processes can import.

    Returns:
        The results, which are in ``results.json`` too.

    Raises:
        ArgumentError: If `path` is a file, or a folder of something else.
        RunFolderError: If a finished run in it has other settings.
    """
    root, settings = Path(path), engine or EngineSettings()
    _check_devices(config, settings)
    with sweeping(root):
        (root / "runs").mkdir(exist_ok=True)
        config.save(root / SETTINGS_FILE)
        failed: dict[RunKey, str] = {}
        for jobs in (choosing_jobs, final_jobs):
            _run_phase(jobs(config, root), settings, failed, on_done, run)
        result = collect(config, root, failed=failed)
        if result.complete:
            _remove_scores([*choosing_jobs(config, root), *final_jobs(config, root)])
        result.record.save(root / "results.json")
    return result


def sweeping(path: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """Be the only one who works in a sweep's folder; see `sensitune.runs.RunFolder.writing`.

    Args:
        path: The folder.

    Returns:
        The context.

    Raises:
        ArgumentError: If `path` is a file, or a folder of something else.
        RunFolderError: If another process works there.
    """
    _check_folder(Path(path))
    return one_writer(path, within=["runs", "scores"])


def _check_folder(root: Path) -> None:
    if root.is_file():
        raise ArgumentError(f"A sweep's folder cannot be a file. Got {root}.")
    if root.is_dir() and not (root / "runs").is_dir() and any(not each.name.startswith(".") for each in root.iterdir()):
        raise ArgumentError(f"{root} is not empty and not a sweep's folder (it has no runs/). Choose another.")


def _check_devices(config: SweepConfig, settings: EngineSettings) -> None:
    """Of this machine; what the nodes of a cluster have is their affair."""
    if settings.engine == "local":
        for label in config.methods:
            asked = config.method_config(label)
            check_precision(asked.recipe.precision, asked.compute.device)


def _remove_scores(jobs: Sequence[Job]) -> None:
    """They are large, and of no use to finished runs."""
    for job in jobs:
        for scoring in job.config.scoring.sufficient():
            (job.scores / scoring.file_name).unlink(missing_ok=True)
    for scores in {job.scores for job in jobs}:
        with suppress(OSError):  # others are left, or none were there
            remove_leftovers(scores)  # a worker that was killed may have left some
            scores.rmdir()


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
    tested = sum(job.finished for job in final_jobs(config, root))
    total = num_tested(config)
    return [("choose settings with", left, len(choosing)), ("test", total - tested, total)]


def _run_phase(
    jobs: Sequence[Job],
    engine: EngineSettings,
    failed: dict[RunKey, str],
    on_done: Callable[[JobOutcome, int, int], None] | None,
    run: RunFunction,
) -> None:
    todo = {job.key: job for job in jobs if not job.finished}
    for job in jobs:
        if job.key not in todo:
            with suppress(SensituneError):  # somebody else is at it
                RunFolder(job.folder, job.config).remove_checkpoints()
    ended = 0

    def note(outcome: JobOutcome) -> None:
        nonlocal ended
        ended += 1
        job = todo[outcome.key]
        if outcome.error is not None and (job.damage is not None or job.diverged is None):
            failed[outcome.key] = outcome.error
        if on_done is not None:
            on_done(outcome, ended, len(todo))

    run_jobs(list(todo.values()), engine, on_done=note, run=run)
