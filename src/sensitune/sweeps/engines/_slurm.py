"""Runs as array jobs of Slurm, through submitit: a job that is preempted or out of time is queued again and goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sensitune._installed import install_line
from sensitune.errors import ArgumentError, MissingPackageError
from sensitune.sweeps._jobs import Job
from sensitune.sweeps.engines._attempt import Attempt, Origin, RunFunction, attempt_on_node, failed, lost, placed
from sensitune.sweeps.engines._settings import EngineSettings

_CLUSTER = "slurm"
_LARGEST_ARRAY: Final = 1000  # Slurm's own default limit is 1001
_POLL_SECONDS = 10.0
_WARNING_SECONDS: Final = 120  # before a time limit or a preemption; an epoch that is under way is lost


def run_on_slurm(
    jobs: Sequence[Job], settings: EngineSettings, run: RunFunction, finish: Callable[[Attempt], None]
) -> None:
    """Run jobs as Slurm's.

    What submitit writes, the jobs' logs included, lies in ``slurm/`` of the sweep's folder until all have gone well.

    Args:
        jobs: The jobs.
        settings: How many at a time, and what each reserves.
        run: Runs a job.
        finish: Is given the last attempt at each job.

    Raises:
        MissingPackageError: If submitit is not installed.
        ArgumentError: If this is no machine of a Slurm cluster, or Slurm refuses the jobs.
    """
    submitit = _import_submitit()
    here = placed(jobs[0]).scores.parent / "slurm"
    executor = _executor(submitit, here, settings, len(jobs))
    origin = Origin.here(settings.cpus_per_run)
    tasks = [_Task(run, placed(job), origin) for job in jobs]
    whole = True
    for losses in range(1, settings.retries + 2):
        again: list[_Task] = []
        for task, found in _outcomes(submitit, executor, tasks):
            if isinstance(found, Attempt):
                whole = whole and found.outcome.error is None
                finish(found)
            elif losses <= settings.retries:
                again.append(task)
            else:
                whole = False
                advice = f"Its logs are in {here}. Reserve more with `sbatch`, such as mem=64G, or use a smaller batch."
                finish(lost(task.job, times=losses, cause=_cause(found), advice=advice))
        tasks = again
        if not tasks:
            break
    if whole:
        shutil.rmtree(here, ignore_errors=True)


@dataclass(frozen=True)
class _Task:
    """A job as submitit calls it; after a preemption or a time limit it is simply called again."""

    run: RunFunction
    job: Job
    origin: Origin

    def __call__(self) -> Attempt:
        return attempt_on_node(self.run, self.job, self.origin)

    def checkpoint(self) -> Any:
        """What submitit queues in its place: itself, for all that a run goes on from is in its folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _import_submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"The engine slurm needs submitit. Install the extra: {install_line('slurm')}. Or take the engine local."
        ) from error
    return submitit


def _executor(submitit: Any, folder: Path, settings: EngineSettings, num_jobs: int) -> Any:
    own = dict(each.partition("=")[::2] for each in settings.sbatch)
    try:
        executor = submitit.AutoExecutor(folder, cluster=_CLUSTER, slurm_max_num_timeout=settings.retries)
        executor.update_parameters(
            name="sensitune",
            timeout_min=settings.minutes,
            nodes=1,
            tasks_per_node=1,
            cpus_per_task=settings.cpus_per_run,
            gpus_per_node=int(settings.gpus_per_run or 0),
            slurm_array_parallelism=settings.workers or num_jobs,
            slurm_signal_delay_s=_WARNING_SECONDS,
            slurm_additional_parameters=own,
        )
    except (RuntimeError, ValueError, AssertionError, NameError) as error:
        raise ArgumentError(
            f"Slurm cannot be used on this machine: {error} Start the sweep on a login node of the cluster, or take "
            "the engine local."
        ) from error
    return executor


def _outcomes(submitit: Any, executor: Any, tasks: Sequence[_Task]) -> Any:
    """Each task with its attempt, or with the error that says how its job was lost, as they end."""
    handed_in: list[tuple[Any, _Task]] = []
    try:
        for start in range(0, len(tasks), _LARGEST_ARRAY):
            part = tasks[start : start + _LARGEST_ARRAY]
            handed_in += zip(_submitted(submitit, executor, part), part, strict=True)
        task_of = {id(job): task for job, task in handed_in}
        for job in submitit.helpers.as_completed([job for job, _ in handed_in], poll_frequency=_POLL_SECONDS):
            task = task_of[id(job)]
            yield task, _result(submitit, job, task)
    finally:
        for job, _ in handed_in:  # what is left when something was raised, Ctrl-C for one
            if not job.done():
                with suppress(Exception):
                    job.cancel()


def _submitted(submitit: Any, executor: Any, tasks: Sequence[_Task]) -> list[Any]:
    try:
        with executor.batch():
            return [executor.submit(task) for task in tasks]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
        raise ArgumentError(f"Slurm refuses the jobs: {str(error).strip()}") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.output or b"").decode(errors="replace").strip()
        raise ArgumentError(f"Slurm refuses the jobs: {said or error}") from error


def _result(submitit: Any, job: Any, task: _Task) -> Attempt | Exception:
    error = job.exception()
    if error is None:
        found: Attempt = job.result()
        return found
    if isinstance(error, submitit.core.utils.FailedJobError):  # what starts the job failed, an import for one
        trace = str(error)
        raised = trace.partition("\n----------------------\n")[2].partition("\n----------------------\n")[0]
        message = f"It could not start: {raised.strip().splitlines()[-1]}. Every node must have Sensitune installed, in"
        return replace(failed(task.job, f"{message} this version."), traceback=trace)
    return error  # type: ignore[no-any-return]


def _cause(error: Exception) -> str:
    """What Slurm says of a job that left nothing."""
    first = str(error).splitlines()
    state = next((line.partition("(state: ")[2].rstrip(")") for line in first if "(state: " in line), "")
    return f"state {state}" if state else first[0]
