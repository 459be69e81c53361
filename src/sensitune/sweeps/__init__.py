"""Many runs: tasks × methods × settings × seeds, with the settings chosen on the validation split first.

    SweepConfig ──▶ jobs to choose with ──engine──▶ choice by validation ──▶ jobs to test ──engine──▶ SweepResult

An engine (`sensitune.sweeps.engines`) computes the runs: processes on this machine, or a Ray cluster. The same command
goes on where it stopped; a run that is finished is never repeated.

Example:
    >>> tasks, method = {"mine": ["my_images"]}, {"backbone": {"name": "vit_small_patch16_224"}}
    >>> config = SweepConfig.from_dict({"tasks": tasks, "methods": {"SPT-LoRA": method}})
    >>> list(config.pairs())
    [('my_images', 'SPT-LoRA')]
    >>> run_sweep(config, "runs/sweeps/mine").accuracies("SPT-LoRA")  # doctest: +SKIP
"""

from sensitune.sweeps._jobs import JobOutcome
from sensitune.sweeps._sweep import SweepResult, SweepRun, collect, planned_runs, run_sweep
from sensitune.sweeps._sweep_config import Published, SweepConfig
from sensitune.sweeps.engines import EngineName, EngineSettings

__all__ = [
    "EngineName",
    "EngineSettings",
    "JobOutcome",
    "Published",
    "SweepConfig",
    "SweepResult",
    "SweepRun",
    "collect",
    "planned_runs",
    "run_sweep",
]
