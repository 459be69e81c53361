"""The engines that compute the runs of a sweep: this machine, a Ray cluster, or Slurm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from sensitune.sweeps._jobs import Job, JobOutcome, run_job
from sensitune.sweeps.engines._attempt import Attempt, RunFunction
from sensitune.sweeps.engines._local import run_locally
from sensitune.sweeps.engines._ray import run_on_ray
from sensitune.sweeps.engines._settings import EngineSettings
from sensitune.sweeps.engines._slurm import run_on_slurm

_ENGINES = {"local": run_locally, "ray": run_on_ray, "slurm": run_on_slurm}
_LOGGER = logging.getLogger(__name__)


def run_jobs(
    jobs: Sequence[Job],
    settings: EngineSettings,
    *,
    on_done: Callable[[JobOutcome], None],
    run: RunFunction = run_job,
) -> None:
    """Run the jobs that are not finished; one that fails does not stop the others.

    A job whose worker dies is started again, up to `EngineSettings.retries` times, and goes on from what it had
    written. An exception that is none of Sensitune's errors is logged with its traceback.

    On a cluster, Sensitune is installed on every node in the version that starts the sweep, and the run folders and the
    data lie on storage that every node sees under the same path. If Ray runs in this process already, its cluster is
    used, whatever the address.

    Args:
        jobs: The jobs.
        settings: Where, and how many at a time.
        on_done: Is told of every job's outcome as it ends.
        run: Runs one job, and is a function that other processes can import.

    Raises:
        ArgumentError: If worker processes cannot start, or the cluster cannot be used as asked.
    """

    def finish(attempt: Attempt) -> None:
        if attempt.traceback is not None:
            _LOGGER.error("The run %s failed.\n%s", attempt.outcome.key, attempt.traceback)
        on_done(attempt.outcome)

    todo = [job for job in jobs if not job.finished]
    if todo:
        _ENGINES[settings.engine](todo, settings, run, finish)
