"""Runs: from a configuration to a trained adapter, and several of them side by side.

    RunConfig ──RunFolder.open──▶ run_sensitivity ──▶ run_allocate ──▶ run_train ──▶ run_evaluate
                                  sensitivity.st      allocation.st    adapter/      evaluation.json

A run lives in a folder. Each stage reads what the earlier ones left there, adds its own files and is not computed
twice; a folder of another configuration is refused, never overwritten. `compare` does it for several methods at the
cost of the uniform LoRA: sum over matrices [out, in] of rank (in + out), plus the class token. `predict` and `merge`
need an adapter folder alone, plus its backbone. `run_sweep` walks tasks × methods × seeds, with the settings chosen on
the validation split first, through an engine: processes on this machine, or a Ray cluster.

    SweepConfig ──▶ jobs to choose with ──engine──▶ choice by validation ──▶ jobs to test ──engine──▶ SweepResult

Example:
    >>> config = RunConfig("vit_small_patch16_224", "my_images", budget="0.5%")
    >>> result = run(RunFolder.open("runs/mine", config))  # doctest: +SKIP
    >>> predict("runs/mine/adapter", ["photo.jpg"]).best(0)  # doctest: +SKIP
    ('cat', 0.97)
"""

from sensitune.sweeps._compare import DEFAULT_METHODS, ComparedRun, compare
from sensitune.sweeps._config import DEFAULT_BUDGET, DeviceName, Method, RunConfig, SensitivitySettings
from sensitune.sweeps._engines import EngineName, EngineSettings
from sensitune.sweeps._folder import RunFolder
from sensitune.sweeps._ingredients import backbone_spec, build_data
from sensitune.sweeps._jobs import JobOutcome
from sensitune.sweeps._methods import METHODS, MethodInfo
from sensitune.sweeps._presets import DEFAULT_PRESETS, PRESETS, PresetName, with_preset
from sensitune.sweeps._reporter import Reporter, Silent
from sensitune.sweeps._stages import run, run_allocate, run_evaluate, run_sensitivity, run_train
from sensitune.sweeps._sweep import SweepResult, SweepRun, collect, planned_runs, run_sweep
from sensitune.sweeps._sweep_config import Published, SweepConfig
from sensitune.sweeps._use import Predictions, merge, open_image, predict

__all__ = [
    "DEFAULT_BUDGET",
    "DEFAULT_METHODS",
    "DEFAULT_PRESETS",
    "METHODS",
    "PRESETS",
    "ComparedRun",
    "DeviceName",
    "EngineName",
    "EngineSettings",
    "JobOutcome",
    "Method",
    "MethodInfo",
    "Predictions",
    "PresetName",
    "Published",
    "Reporter",
    "RunConfig",
    "RunFolder",
    "SensitivitySettings",
    "Silent",
    "SweepConfig",
    "SweepResult",
    "SweepRun",
    "backbone_spec",
    "build_data",
    "collect",
    "compare",
    "merge",
    "open_image",
    "planned_runs",
    "predict",
    "run",
    "run_allocate",
    "run_evaluate",
    "run_sensitivity",
    "run_sweep",
    "run_train",
    "with_preset",
]
