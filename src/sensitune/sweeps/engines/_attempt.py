"""One attempt at a job, which always has an outcome: what every engine shares."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

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


def failed(job: Job, error: str) -> Attempt:
    """An attempt that never got to run."""
    return Attempt(JobOutcome(job.key, error, 0.0))


def lost(job: Job, *, times: int, cause: str, advice: str) -> Attempt:
    """The last of several attempts whose workers died."""
    often = "once" if times == 1 else f"{times} times"
    return failed(job, f"Its worker died {often} (at last: {cause}), most often for want of memory. {advice}")
