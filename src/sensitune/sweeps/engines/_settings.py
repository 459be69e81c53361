"""Where the runs of a sweep are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sensitune._schema import NonEmptyText, NonNegative, NonNegativeInt, PositiveInt, check
from sensitune.errors import ArgumentError

EngineName = Literal["local", "ray", "slurm"]


@dataclass(frozen=True)
class EngineSettings:
    """Where the runs of a sweep are computed, and how many at a time.

    Attributes:
        engine: ``"local"``: on this machine; ``"ray"``: on a Ray cluster; ``"slurm"``: as array jobs of Slurm.
        workers: Runs at a time. None = one in this process, or as many as the cluster has room for. Worker processes
            share this machine's threads, and its CUDA devices in turn.
        address: A Ray cluster: ``host:port`` of its head node, or ``auto`` for the one that this machine belongs to;
            None starts one on this machine alone.
        cpus_per_run: CPU cores that a cluster reserves for a run, and the threads the run uses there.
        gpus_per_run: GPUs that a cluster reserves for a run; with Ray 0.5 lets two share one. None = with Ray 1 if the
            cluster has any when the sweep starts, else 0; with Slurm 0.
        minutes: Time limit of a Slurm job. A run that reaches it is queued again and goes on, `retries` times.
        sbatch: Options of Slurm's sbatch by name, such as ``partition=long`` or ``account=vision``.
        retries: How often a run that was lost with its worker is started again.
    """

    engine: EngineName = "local"
    workers: PositiveInt | None = None
    address: NonEmptyText | None = None
    cpus_per_run: PositiveInt = 1
    gpus_per_run: NonNegative | None = None
    minutes: PositiveInt = 240
    sbatch: tuple[NonEmptyText, ...] = ()
    retries: NonNegativeInt = 3

    def __post_init__(self) -> None:
        check(self)
        if self.address is not None and self.engine != "ray":
            raise ArgumentError(f"`address` is a Ray cluster's: choose the engine ray. Got {self.address!r}.")
        if self.engine == "slurm" and self.gpus_per_run is not None and self.gpus_per_run % 1:
            raise ArgumentError(f"`gpus_per_run` must be a whole number with Slurm. Got {self.gpus_per_run}.")
        if self.sbatch and self.engine != "slurm":
            raise ArgumentError(f"`sbatch` is Slurm's: choose the engine slurm. Got {self.sbatch[0]!r}.")
        if wrong := [each for each in self.sbatch if not all(part.strip() for part in each.partition("=")[::2])]:
            raise ArgumentError(f"`sbatch` takes NAME=VALUE, such as partition=long. Got {wrong[0]!r}.")
