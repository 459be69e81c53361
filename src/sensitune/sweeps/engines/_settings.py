"""Where the runs of a sweep are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sensitune._schema import NonEmptyText, NonNegative, NonNegativeInt, PositiveInt, check
from sensitune.errors import ArgumentError

EngineName = Literal["local", "ray"]


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
    workers: PositiveInt | None = None
    address: NonEmptyText | None = None
    cpus_per_run: PositiveInt = 1
    gpus_per_run: NonNegative | None = None
    retries: NonNegativeInt = 3

    def __post_init__(self) -> None:
        check(self)
        if self.address is not None and self.engine != "ray":
            raise ArgumentError(f"`address` is a Ray cluster's: choose the engine ray. Got {self.address!r}.")
