"""One attempt at a job, which always has an outcome, here or on a node of a cluster: what the engines share."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sensitune.errors import ProcessError
from sensitune.runs import check_versions, surroundings
from sensitune.sweeps._jobs import Job, JobOutcome

RunFunction = Callable[[Job], JobOutcome]


@dataclass(frozen=True)
class Attempt:
    """How an attempt at a job ended; what a worker sends back.

    Attributes:
        outcome: The job's outcome.
        traceback: Where an exception came from that no job should raise.
    """

    outcome: JobOutcome
    traceback: str | None = None


def attempt(run: RunFunction, job: Job) -> Attempt:
    """Run a job; an exception that it lets through is an outcome too, so that the other jobs go on."""
    started = time.perf_counter()
    try:
        return Attempt(run(job))
    except Exception as error:  # a mistake of ours or of a library
        message = "".join(traceback.format_exception_only(error)).strip()
        return Attempt(JobOutcome(job.key, message, time.perf_counter() - started), traceback.format_exc())


@dataclass(frozen=True)
class Origin:
    """Where a sweep was started, for nodes that are to compute as it would.

    Attributes:
        folder: The folder that relative paths mean.
        versions: Of what the numbers may depend on.
        threads: That a run may use.
    """

    folder: str
    versions: Mapping[str, str]
    threads: int

    @classmethod
    def here(cls, threads: int) -> Origin:
        """This process's."""
        return cls(os.getcwd(), surroundings(), threads)


def placed(job: Job) -> Job:
    """The job with paths that mean the same in every folder, and the shared folder made, which the nodes look for."""
    job.scores.mkdir(parents=True, exist_ok=True)
    return replace(job, folder=job.folder.absolute(), scores=job.scores.absolute())


def attempt_on_node(run: RunFunction, job: Job, origin: Origin) -> Attempt:
    """Run a job on a node of a cluster, if it sees the sweep's folder and has the versions that the sweep started with.

    Args:
        run: Runs the job.
        job: From `placed`.
        origin: Where the sweep was started.

    Returns:
        The attempt.
    """
    node = f"The node {platform.node()}"
    if not job.scores.is_dir():
        message = f"{node} does not see {job.scores}. Put the sweep's folder on storage that every node of the cluster"
        return failed(job, f"{message} sees under the same path.")
    try:
        check_versions([("the sweep", origin.versions), (node, surroundings())])
    except ProcessError as error:
        return failed(job, str(error))
    if Path(origin.folder).is_dir():  # a relative path to data means what it means where the sweep was started
        os.chdir(origin.folder)
    torch.set_num_threads(origin.threads)
    return attempt(run, job)


def failed(job: Job, error: str) -> Attempt:
    """An attempt that never got to run."""
    return Attempt(JobOutcome(job.key, error, 0.0))


def lost(job: Job, *, times: int, cause: str, advice: str) -> Attempt:
    """The last of several attempts whose workers died."""
    often = "once" if times == 1 else f"{times} times"
    return failed(job, f"Its worker died {often} (at last: {cause}), most often for want of memory. {advice}")
