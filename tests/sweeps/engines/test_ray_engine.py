"""The Ray engine on a local cluster of two nodes, with a worker killed and a node taken away in the middle of runs."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import pytest
from small_runs import changed

from sensitune.errors import ArgumentError, MissingPackageError
from sensitune.runs import RunConfig
from sensitune.sweeps import EngineSettings, Job, JobOutcome
from sensitune.sweeps._jobs import run_job
from sensitune.sweeps.engines import _ray as engine_ray
from sensitune.sweeps.engines._attempt import Origin, attempt_on_node
from sensitune.sweeps.engines._run_jobs import run_jobs
from sensitune.training import read_metrics

ray = pytest.importorskip("ray")

NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 1024**2}
ON_RAY = EngineSettings(engine="ray")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of run functions, under a name that the nodes' workers can import."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    # Not in pytest's folders: the names of Ray's sockets must be short.
    with TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield importlib.import_module("engine_runs")
        ray.shutdown()


@pytest.fixture
def cluster(runs: ModuleType) -> Iterator[Any]:
    """A head node; a run takes a whole node."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **NODE})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def wait_for(condition: Callable[[], Any], *, seconds: float) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_killed_worker_and_a_lost_node_cost_a_retry_each_and_nothing_else(
    runs: ModuleType, cluster: Any, config: RunConfig, tmp_path: Path
) -> None:
    doomed = cluster.add_node(env_vars={runs.DOOMED_NODE: "1"}, **NODE)
    cluster.wait_for_nodes()
    jobs = runs.jobs_in(tmp_path, config, ["killed", "first", "second", "bug", "third"])
    found: list[JobOutcome] = []

    def take_the_node_away() -> None:
        wait_for(lambda: any(runs.waiting(job) for job in jobs.values()), seconds=90)
        cluster.remove_node(doomed, allow_graceful=False)

    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(take_the_node_away)
        on_cluster = replace(ON_RAY, address=cluster.address)
        run_jobs(list(jobs.values()), on_cluster, on_done=found.append, run=runs.eventful)
        gone.result()

    errors = {outcome.key.task: outcome.error for outcome in found}
    assert errors == dict.fromkeys(jobs) | {"bug": "LookupError: no such thing"}
    assert len(found) == len(jobs)
    assert sum(runs.losses(job) for job in jobs.values()) == 2
    for job in jobs.values():
        assert len(runs.attempts(job)) == 1 + runs.losses(job)
        assert set(runs.environments(job)) == {"1 1 None"}, "threads"
        # What was lost went on from the epoch that was on disk: no epoch is there twice.
        if job.key.task != "bug":
            assert [row.epoch for row in read_metrics(job.folder / "metrics.jsonl")] == [1, 2, 3]
    cluster.shutdown()
    assert not any(alive(process) for job in jobs.values() for process in runs.attempts(job))


@pytest.mark.slow
def test_without_an_address_a_cluster_is_started_for_the_sweep_alone(
    runs: ModuleType, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = runs.jobs_in(Path("relative"), changed(config, allocation={"method": "head", "budget": None}), ["good"])
    with pytest.raises(ArgumentError, match="A run reserves 10000 CPUs and 0 GPUs; the cluster's nodes have: .* Lower"):
        run_jobs(list(jobs.values()), replace(ON_RAY, cpus_per_run=10_000, gpus_per_run=0), on_done=print)
    assert not ray.is_initialized()
    found: list[JobOutcome] = []
    run_jobs(list(jobs.values()), replace(ON_RAY, workers=1), on_done=found.append)
    assert [outcome.error for outcome in found] == [None]
    assert jobs["good"].finished
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_running_ray_is_used_and_left_as_it_is_when_the_sweep_is_interrupted(
    runs: ModuleType, config: RunConfig, tmp_path: Path
) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=NODE["object_store_memory"])
    jobs = runs.jobs_in(tmp_path, config, ["patient", "bug"])

    def interrupt(_: JobOutcome) -> None:
        wait_for(lambda: runs.waiting(jobs["patient"]), seconds=60)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(list(jobs.values()), ON_RAY, on_done=interrupt, run=runs.eventful)
    assert ray.is_initialized()
    wait_for(lambda: not alive(runs.waiting(jobs["patient"])), seconds=20)


class _Unknown:
    """Comes out of its pickle only where a module that does not exist can be imported."""

    def __reduce__(self) -> Any:
        return importlib.import_module, ("no_such_module",)

    def __call__(self, job: Job) -> JobOutcome:
        raise AssertionError(job)


@pytest.mark.slow
def test_a_run_that_kills_its_workers_or_cannot_be_loaded_is_given_up(
    runs: ModuleType, cluster: Any, config: RunConfig, tmp_path: Path
) -> None:
    jobs = runs.jobs_in(tmp_path, config, ["hopeless", "good"])
    found: list[JobOutcome] = []
    settings = replace(ON_RAY, address=cluster.address, retries=1)
    run_jobs(list(jobs.values()), settings, on_done=found.append, run=runs.eventful)
    run_jobs([jobs["hopeless"]], settings, on_done=found.append, run=_Unknown())
    *both, unknown = found
    errors = {outcome.key.task: outcome.error for outcome in both}
    assert errors["good"] is None
    assert errors["hopeless"] == (
        "Its worker died 2 times (at last: WorkerCrashedError), most often for want of memory. "
        "Let fewer runs share a node with a larger `cpus_per_run`, or use a smaller batch."
    )
    assert len(runs.attempts(jobs["hopeless"])) == 2
    assert "It could not start: ModuleNotFoundError: No module named 'no_such_module'." in str(unknown.error)


def test_a_node_that_does_not_see_the_folder_says_so(runs: ModuleType, config: RunConfig, tmp_path: Path) -> None:
    [job] = runs.jobs_in(tmp_path, config, ["a"]).values()
    outcome = attempt_on_node(run_job, job, Origin.here(1)).outcome
    assert f"does not see {job.scores}. Put the sweep's folder on storage that every node" in str(outcome.error)
    assert list(tmp_path.iterdir()) == []


def test_ray_that_is_not_installed_is_named(
    runs: ModuleType, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingPackageError, match=r"The engine ray needs Ray. Install the extra: pip install 'sensitune\[ray\]'."
    ):
        run_jobs(list(runs.jobs_in(tmp_path, config, ["a"]).values()), ON_RAY, on_done=print)


def test_an_address_where_nobody_answers_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(ArgumentError, match=f"No Ray cluster answers at 127.0.0.1:{port} .*refused"):
        engine_ray._connect(ray, f"127.0.0.1:{port}")
    with pytest.raises(
        ArgumentError, match="`address` must be host:port of the cluster's head node, or auto. Got 'ray://a:1'."
    ):
        engine_ray._connect(ray, "ray://a:1")
    with pytest.raises(ArgumentError, match="The Ray cluster at auto cannot be used"):
        engine_ray._connect(ray, "auto")
    assert time.monotonic() - started < 15
