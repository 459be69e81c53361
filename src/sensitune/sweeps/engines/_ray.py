"""Runs on a Ray cluster: one task each, which Ray starts again elsewhere if its worker or node is lost."""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sensitune._installed import install_line
from sensitune.errors import ArgumentError, MissingPackageError
from sensitune.sweeps._jobs import Job
from sensitune.sweeps.engines._attempt import Attempt, Origin, RunFunction, attempt_on_node, failed, lost, placed
from sensitune.sweeps.engines._settings import EngineSettings

_CONNECT_SECONDS = 10.0
_LOGGER = logging.getLogger(__name__)


def run_on_ray(
    jobs: Sequence[Job], settings: EngineSettings, run: RunFunction, finish: Callable[[Attempt], None]
) -> None:
    """Run jobs as Ray tasks.

    Args:
        jobs: The jobs.
        settings: The cluster, how many at a time, and what each reserves.
        run: Runs a job.
        finish: Is given the last attempt at each job.

    Raises:
        MissingPackageError: If Ray is not installed.
        ArgumentError: If the cluster cannot be used.
    """
    ray = _import_ray()
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, settings.address)
    try:
        _collect(ray, deque(jobs), settings, run, finish)
    finally:
        if ours:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"The engine ray needs Ray. Install the extra: {install_line('ray')}. Or take the engine local."
        ) from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    if address is not None and address != "auto":
        _require_open_port(address)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Only jobs and outcomes go through the object store, so a cluster of ours reserves the least memory for it.
    own = {"include_dashboard": False, "object_store_memory": 100 * 1024**2} if address is None else {}
    try:
        ray.init(address=address or "local", **quiet, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ArgumentError(f"The Ray cluster at {address or 'this machine'} cannot be used: {error}") from error


def _require_open_port(address: str) -> None:
    """Ray itself goes on trying for minutes where nobody answers."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ArgumentError(f"`address` must be host:port of the cluster's head node, or auto. Got {address!r}.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ArgumentError(
            f"No Ray cluster answers at {address} ({error}). `ray status` on its head node says whether it runs."
        ) from error


def _collect(
    ray: Any,
    waiting: deque[Job],
    settings: EngineSettings,
    run: RunFunction,
    finish: Callable[[Attempt], None],
) -> None:
    task = ray.remote(attempt_on_node).options(max_retries=settings.retries, **_reserved(ray, settings))
    limit = settings.workers or len(waiting)
    running: dict[Any, Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                job = placed(waiting.popleft())
                running[task.remote(run, job, Origin.here(settings.cpus_per_run))] = job
            [reference], _ = ray.wait(list(running))
            finish(_result(ray, reference, running.pop(reference), settings))
    finally:
        for reference in running:  # what is left when something was raised, Ctrl-C for one
            ray.cancel(reference, force=True)


def _reserved(ray: Any, settings: EngineSettings) -> dict[str, float]:
    """What Ray reserves for a run."""
    gpus = settings.gpus_per_run
    if gpus is None:
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= settings.cpus_per_run and node.get("GPU", 0) >= gpus for node in nodes):
        found = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        message = f"A run reserves {settings.cpus_per_run} CPUs and {gpus:g} GPUs; the cluster's nodes have: {found}."
        if settings.address is None:
            raise ArgumentError(f"{message} Lower `cpus_per_run` or `gpus_per_run`.")
        _LOGGER.warning("%s Waiting for a larger node.", message)  # a cluster may start its nodes on demand
    return {"num_cpus": settings.cpus_per_run, "num_gpus": gpus}


def _result(ray: Any, reference: Any, job: Job, settings: EngineSettings) -> Attempt:
    try:
        result: Attempt = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # what Ray needs to start the job failed, an import for one
        reason = str(error).strip().splitlines()[-1]
        message = f"It could not start: {reason}. Every node must have Sensitune installed, in this version."
        return replace(failed(job, message), traceback=str(error))
    except ray.exceptions.RayError as error:
        advice = "Let fewer runs share a node with a larger `cpus_per_run`, or use a smaller batch."
        return lost(job, times=settings.retries + 1, cause=type(error).__name__, advice=advice)
    return result
