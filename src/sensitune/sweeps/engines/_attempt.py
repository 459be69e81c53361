"""What every engine shares: its settings, and one attempt at a job, which always has an outcome."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from sensitune.errors import ArgumentError
from sensitune.sweeps._jobs import Job, JobOutcome

EngineName = Literal["local", "ray"]
RunFunction = Callable[[Job], JobOutcome]


@dataclass(frozen=True)
class EngineSettings:
    """Where the runs of a sweep are computed, and how many at a time.

    Attributes:
        engine: ``"local"``: on this machine; ``"ray"``: on a Ray cluster.
        workers: Runs at a time. None = one in this process, or as many as the Ray cluster has room for. Worker
            processes share this machine's threads, and its CUDA devices in turn.
        address: A Ray cluster: ``host:port`` of its head node, or ``auto`` for the one that this machine belongs to;
            None starts one on this machine alone.
        cpus_per_run: CPU cores that Ray reserves for a run, and the threads the run uses there.
        gpus_per_run: GPUs that Ray reserves for a run; 0.5 lets two share one. None = 1 if the cluster has any when
            the sweep starts, else 0.
        retries: How often a run that was lost with its worker is started again.
    """

    engine: EngineName = "local"
    workers: int | None = None
    address: str | None = None
    cpus_per_run: int = 1
    gpus_per_run: float | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        if self.engine not in get_args(EngineName):
            raise ArgumentError(f"`engine` must be one of {', '.join(get_args(EngineName))}. Got {self.engine!r}.")
        if self.address is not None and self.engine != "ray":
            raise ArgumentError(f"`address` is a Ray cluster's: choose the engine ray. Got {self.address!r}.")
        for name, least in (("workers", 1), ("cpus_per_run", 1), ("gpus_per_run", 0), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ArgumentError(f"`{name}` must be at least {least}. Got {value}.")


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
        return Attempt(JobOutcome(job.name, message, time.perf_counter() - started), traceback.format_exc())


def failed(job: Job, error: str) -> Attempt:
    """An attempt that never got to run."""
    return Attempt(JobOutcome(job.name, error, 0.0))


def lost(job: Job, *, times: int, cause: str, advice: str) -> Attempt:
    """The last of several attempts whose workers died."""
    often = "once" if times == 1 else f"{times} times"
    return failed(job, f"Its worker died {often} (at last: {cause}), most often for want of memory. {advice}")
