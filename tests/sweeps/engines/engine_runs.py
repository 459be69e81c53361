"""Run functions for the engines' tests: worker processes import this module by its name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sensitune.runs import RunConfig, _run
from sensitune.sweeps import Job, JobOutcome, RunKey
from sensitune.sweeps._jobs import run_job
from sensitune.training import TrainingProgress

DOOMED_NODE = "SENSITUNE_TEST_DOOMED_NODE"


def jobs_in(folder: Path, config: RunConfig, names: list[str]) -> dict[str, Job]:
    """Jobs that differ in task and folder alone."""
    keys = {name: RunKey(name, "method", {}, seed=0) for name in names}
    return {name: Job(key, folder / "runs" / name, config, folder / "scores", test=True) for name, key in keys.items()}


def attempts(job: Job) -> list[int]:
    """The processes that have tried a job, in order."""
    return [int(line.split()[0]) for line in _lines(job)]


def environments(job: Job) -> list[str]:
    """What those processes found: OMP_NUM_THREADS, torch's threads, CUDA_VISIBLE_DEVICES."""
    return [line.partition(" ")[2] for line in _lines(job)]


def _log(job: Job) -> Path:
    return job.folder.parent / f"{job.key.task}.attempts"


def _lines(job: Job) -> list[str]:
    return _log(job).read_text().splitlines() if _log(job).exists() else []


def _note_attempt(job: Job) -> None:
    _log(job).parent.mkdir(parents=True, exist_ok=True)
    found = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads(), os.environ.get("CUDA_VISIBLE_DEVICES")
    with _log(job).open("a") as log:
        log.write(f"{os.getpid()} {' '.join(map(str, found))}\n")


def losses(job: Job) -> int:
    """How many of the attempts ended with their worker or its node."""
    return sum((job.folder.parent / f"{job.key.task}.{kind}").exists() for kind in ("died", "waits"))


def _die(job: Job) -> None:
    (job.folder.parent / f"{job.key.task}.died").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def eventful(job: Job) -> JobOutcome:
    """What happens to a job follows from its task, or from the node it is on; the rest are real runs."""
    _note_attempt(job)
    if job.key.task == "bug":
        raise LookupError("no such thing")
    if job.key.task == "hopeless":
        _die(job)
    if job.key.task == "patient":
        wait_forever(job)
    if job.key.task == "killed" and not losses(job):
        _in_the_second_epoch(lambda: _die(job))
    elif job.key.task == "preempted" and len(attempts(job)) == 1:
        _in_the_second_epoch(lambda: os.kill(os.getpid(), signal.SIGUSR2))  # as Slurm does before it takes a node away
    elif DOOMED_NODE in os.environ:
        _in_the_second_epoch(lambda: wait_forever(job))
    return run_job(job)


def _in_the_second_epoch(event: Callable[[], object]) -> None:
    """Let something happen when one epoch is on disk; the process does not outlive it."""

    def report(_: object, progress: TrainingProgress) -> None:
        if progress.epoch == 2:
            event()

    _run.report_training = report


def wait_forever(job: Job) -> JobOutcome:
    (job.folder.parent / f"{job.key.task}.waits").write_text(str(os.getpid()))
    time.sleep(600)
    raise AssertionError("nobody ended this process")


def waiting(job: Job) -> int | None:
    """The process that waits in a job."""
    note = job.folder.parent / f"{job.key.task}.waits"
    return int(note.read_text() or 0) or None if note.exists() else None
