"""Engines on this machine: one process or several, what fails, what dies, what is interrupted."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from small_runs import changed

from sensitune.errors import ArgumentError
from sensitune.runs import RunConfig
from sensitune.sweeps import EngineSettings, Job, JobOutcome
from sensitune.sweeps.engines import _local as engine_local
from sensitune.sweeps.engines._run_jobs import run_jobs
from sensitune.training import read_metrics, read_result


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of run functions, under a name that worker processes can import."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("engine_runs")


def errors_of(jobs: Iterable[Job], settings: EngineSettings, **kwargs: object) -> dict[str, str | None]:
    found: list[JobOutcome] = []
    run_jobs(list(jobs), settings, on_done=found.append, **kwargs)  # type: ignore[arg-type]
    assert len({outcome.key.task for outcome in found}) == len(found), "an outcome was told twice"
    return {outcome.key.task: outcome.error for outcome in found}


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def times_of_change(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_in_this_process_jobs_run_in_order_and_each_is_told_when_it_ends(
    runs: ModuleType, config: RunConfig, tmp_path: Path
) -> None:
    jobs = runs.jobs_in(tmp_path, config, ["first", "second"])
    told: list[tuple[str, bool]] = []
    run_jobs(
        list(jobs.values()),
        EngineSettings(),
        on_done=lambda outcome: told.append((outcome.key.task, jobs["second"].finished)),
        run=runs.eventful,
    )
    assert told == [("first", False), ("second", True)]
    assert runs.attempts(jobs["first"]) == runs.attempts(jobs["second"]) == [os.getpid()]


def test_in_this_process_a_run_that_fails_does_not_stop_the_next(
    runs: ModuleType, config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = runs.jobs_in(tmp_path, config, ["bug", "misled", "good"])
    jobs["misled"] = replace(jobs["misled"], config=changed(config, data={"source": "nowhere"}))
    jobs["good"] = replace(jobs["good"], config=changed(config, allocation={"method": "head", "budget": None}))
    with caplog.at_level(logging.ERROR):
        found = errors_of(jobs.values(), EngineSettings(), run=runs.eventful)
    assert found.pop("bug") == "LookupError: no such thing"
    assert "nowhere" in str(found.pop("misled"))
    assert found == {"good": None}
    [record] = caplog.records  # where the bug is; a mistake in the settings needs no traceback
    assert record.getMessage().startswith("The run bug/method/plain/seed0 failed.\nTraceback")
    assert "in eventful" in record.getMessage()


def test_a_finished_run_is_not_started_again(runs: ModuleType, config: RunConfig, tmp_path: Path) -> None:
    jobs = runs.jobs_in(tmp_path, changed(config, allocation={"method": "head", "budget": None}), ["good"])
    assert errors_of(jobs.values(), EngineSettings()) == {"good": None}
    written = times_of_change(tmp_path)
    assert errors_of(jobs.values(), EngineSettings()) == {}
    assert errors_of(jobs.values(), EngineSettings(workers=2)) == {}
    assert written == times_of_change(tmp_path)


def test_in_worker_processes_a_mistake_a_bug_and_a_death_cost_nobody_else_anything(
    runs: ModuleType, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    before = dict(os.environ)
    jobs = runs.jobs_in(tmp_path, config, ["killed", "good", "hopeless", "bug", "misled", "last"])
    jobs["misled"] = replace(jobs["misled"], config=changed(config, data={"source": "nowhere"}))
    found = errors_of(jobs.values(), EngineSettings(workers=2, retries=1), run=runs.eventful)

    assert found.pop("bug") == "LookupError: no such thing"
    assert "nowhere" in str(found.pop("misled"))
    assert found.pop("hopeless") == (
        "Its worker died 2 times (at last: signal SIGKILL), most often for want of memory. "
        "Use fewer than 2 workers, or a smaller batch."
    )
    assert found == {"killed": None, "good": None, "last": None}
    tries = {name: len(runs.attempts(job)) for name, job in jobs.items()}
    assert tries == {"killed": 2, "good": 1, "hopeless": 2, "bug": 1, "misled": 1, "last": 1}
    # The run that was killed went on from the epoch that was on disk, and no worker is left.
    assert [row.epoch for row in read_metrics(jobs["killed"].folder / "metrics.jsonl")] == [1, 2, 3]
    assert getattr(read_result(jobs["killed"].folder), "resumed_after", None) == 1
    assert not any(alive(process) for job in jobs.values() for process in runs.attempts(job))
    # The workers shared the threads and the devices, old and new ones alike.
    assert {told for job in jobs.values() for told in runs.environments(job)} == {"1 1 4", "1 1 7"}
    assert dict(os.environ) == before


def test_workers_take_the_cuda_devices_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [found["CUDA_VISIBLE_DEVICES"] for found in engine_local._environments(4)] == ["0", "1", "2", "0"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [set(found) for found in engine_local._environments(2)] == [{"OMP_NUM_THREADS"}] * 2


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import engine_runs
from sensitune.backbones import BackboneSpec
from sensitune.data import DataSettings
from sensitune.runs import RunConfig
from sensitune.sweeps import EngineSettings
from sensitune.sweeps.engines._run_jobs import run_jobs

{guard}
    config = RunConfig(BackboneSpec("any"), DataSettings("any"))
    jobs = engine_runs.jobs_in(Path({folder!r}), config, ["a", "b", "c"])
    run_jobs(list(jobs.values()), EngineSettings(workers=2), on_done=print, run=engine_runs.wait_forever)
"""


def start_script(folder: Path, *, guard: str = 'if __name__ == "__main__":') -> subprocess.Popen[str]:
    (folder / "runs").mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder), guard=guard))
    return subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_sweep_that_is_interrupted_or_killed_leaves_no_process(
    runs: ModuleType, config: RunConfig, tmp_path: Path, how: signal.Signals
) -> None:
    a, b, c = runs.jobs_in(tmp_path, config, ["a", "b", "c"]).values()
    with start_script(tmp_path) as script:
        wait_until(lambda: bool(runs.waiting(a) and runs.waiting(b)), seconds=90)
        workers = [runs.waiting(a), runs.waiting(b)]
        assert all(alive(worker) for worker in workers)
        # Ctrl-C reaches everything that runs in the terminal.
        (os.killpg if how is signal.SIGINT else os.kill)(script.pid, how)
        assert script.wait(timeout=10) == -how
        wait_until(lambda: not any(alive(worker) for worker in workers), seconds=10)
        said = script.stderr.read() if script.stderr else ""
    assert said.count("Traceback") == (how is signal.SIGINT), said
    assert runs.waiting(c) is None


@pytest.mark.slow
def test_a_script_without_the_main_guard_is_told_of_it(tmp_path: Path) -> None:
    with start_script(tmp_path, guard="if True:") as script:
        _, said = script.communicate(timeout=100)
    assert "`workers` = 2 needs worker processes, and one ended while it was starting (exit code 1)" in said
    assert "under `if __name__ == '__main__':`" in said


def test_wrong_engine_settings_are_refused() -> None:
    with pytest.raises(ArgumentError, match="`engine` must be one of local, ray, slurm. Got 'pbs'."):
        EngineSettings(engine="pbs")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="`workers` must be a whole number of at least 1 or None. Got 0."):
        EngineSettings(workers=0)
    with pytest.raises(ArgumentError, match="`gpus_per_run` must be a number of at least 0 or None. Got -1."):
        EngineSettings(engine="ray", gpus_per_run=-1)
    with pytest.raises(ArgumentError, match="`address` is a Ray cluster's: choose the engine ray."):
        EngineSettings(address="node:6379")
