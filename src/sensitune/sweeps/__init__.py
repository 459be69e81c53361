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

from sensitune.sweeps._collect import SweepRecord, SweepResult, SweepRun, collect
from sensitune.sweeps._jobs import Job, JobOutcome
from sensitune.sweeps._key import RunKey
from sensitune.sweeps._sweep import SETTINGS_FILE, planned_runs, run_sweep, sweeping
from sensitune.sweeps._sweep_config import SweepConfig
from sensitune.sweeps.engines import EngineName, EngineSettings

__all__ = [
    "SETTINGS_FILE",
    "EngineName",
    "EngineSettings",
    "Job",
    "JobOutcome",
    "RunKey",
    "SweepConfig",
    "SweepRecord",
    "SweepResult",
    "SweepRun",
    "collect",
    "planned_runs",
    "run_sweep",
    "sweeping",
]
