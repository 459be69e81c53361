"""Runs on this machine: in this process, or in worker processes of which each does one job at a time.

A worker that dies takes only its own job with it: the others have their own processes and pipes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

import torch

from sensitune.errors import ArgumentError
from sensitune.sweeps._jobs import Job
from sensitune.sweeps.engines._attempt import Attempt, RunFunction, attempt, lost
from sensitune.sweeps.engines._settings import EngineSettings

# A forked process cannot use CUDA once its parent has.
_SPAWN = multiprocessing.get_context("spawn")
_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def run_locally(
    jobs: Sequence[Job], settings: EngineSettings, run: RunFunction, finish: Callable[[Attempt], None]
) -> None:
    """Run jobs on this machine.

    Args:
        jobs: The jobs.
        settings: How many at a time; more than one, and they run in worker processes.
        run: Runs a job.
        finish: Is given the last attempt at each job.

    Raises:
        ArgumentError: If worker processes cannot start at all.
    """
    num_workers = min(settings.workers or 1, len(jobs))
    if (settings.workers or 1) == 1:
        for job in jobs:
            finish(attempt(run, job))
        return
    workers: list[_Worker] = []
    try:
        for environment in _environments(num_workers):
            workers.append(_Worker(run, environment))
        _share_out(jobs, workers, settings, finish)
    finally:
        for worker in workers:
            worker.stop()


@dataclass
class _Task:
    job: Job
    losses: int = 0


def _share_out(
    jobs: Sequence[Job], workers: Sequence[_Worker], settings: EngineSettings, finish: Callable[[Attempt], None]
) -> None:
    waiting = deque(_Task(job) for job in jobs)
    any_started = False
    while waiting or any(worker.task for worker in workers):
        for worker in workers:
            if worker.task is None and waiting:
                worker.give(waiting.popleft())
        busy = [worker for worker in workers if worker.task]
        speaking = wait([worker.connection for worker in busy])
        for worker in (worker for worker in busy if worker.connection in speaking):
            try:
                answer = worker.connection.recv()
            except (EOFError, OSError):
                cause = worker.bury()
                if not any_started:
                    raise ArgumentError(_NO_START.format(settings.workers, cause)) from None
                _try_again(worker, cause, waiting, settings, finish)
            else:
                any_started = True
                if answer is not None:
                    worker.task = None
                    finish(answer)


_NO_START = (
    "`workers` = {} needs worker processes, and one ended while it was starting ({}); what it wrote is above. A script "
    "must call this under `if __name__ == '__main__':`, because each worker imports it. Or take 1 worker."
)


def _try_again(
    worker: _Worker,
    cause: str,
    waiting: deque[_Task],
    settings: EngineSettings,
    finish: Callable[[Attempt], None],
) -> None:
    task, worker.task = worker.task, None
    assert task is not None
    task.losses += 1
    if task.losses <= settings.retries:
        waiting.appendleft(task)
        return
    advice = f"Use fewer than {settings.workers} workers, or a smaller batch."
    finish(lost(task.job, times=task.losses, cause=cause, advice=advice))


class _Worker:
    """A process that does one job after the other; if it dies, a new one takes its place with the next job.

    Attributes:
        connection: Jobs go out here, attempts come back; the first message is None, once it has started.
        task: What it is doing.
    """

    connection: Connection

    def __init__(self, run: RunFunction, environment: Mapping[str, str]) -> None:
        self._run = run
        self._environment = environment
        self.task: _Task | None = None
        self._start()

    def _start(self) -> None:
        self.connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs, self._run))
        with _environment(self._environment), _no_signals():
            self._process.start()
        theirs.close()  # so that the worker's end closes when the worker dies

    def give(self, task: _Task) -> None:
        self.task = task
        if self.connection.closed:
            self._start()
        with suppress(OSError):  # it died while it had nothing to do; its silence will tell
            self.connection.send(task.job)

    def bury(self) -> str:
        """Say how the process died."""
        self.connection.close()
        self._process.join()
        code = self._process.exitcode or 0
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def stop(self) -> None:
        """End the process at once; an idle one has nothing to lose, and what a busy one writes it writes whole."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, run: RunFunction) -> None:
    """What a worker process does, until its pipe is closed."""
    for each in _ENDING:  # Ctrl-C and the like reach the parent too, which then ends this process
        signal.signal(each, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with suppress(EOFError, ConnectionError):
        connection.send(None)
        while True:
            connection.send(attempt(run, connection.recv()))


@contextmanager
def _no_signals() -> Iterator[None]:
    """Keep the signals that end a command from a process until it can tell what to do with them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which is started here otherwise, and lets them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, so they watch it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _environments(num_workers: int) -> list[dict[str, str]]:
    """What each worker finds in its environment before it imports anything: its threads, and its CUDA device."""
    threads = str(max(1, torch.get_num_threads() // num_workers))
    devices = _cuda_devices()
    return [
        {"OMP_NUM_THREADS": threads}
        | ({"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} if len(devices) > 1 else {})
        for index in range(num_workers)
    ]


def _cuda_devices() -> list[str]:
    """The CUDA devices this process may use, by the names that it would call them in ``CUDA_VISIBLE_DEVICES``."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Change this process's environment for the processes that it starts meanwhile."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
