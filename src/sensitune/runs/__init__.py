"""One run: from its settings to a trained adapter, and what the adapter is for.

    RunConfig ──RunFolder.open──▶ run_sensitivity ──▶ run_allocate ──▶ run_train ──▶ run_evaluate
                                  sensitivity.st      allocation.st    adapter/      evaluation.json

A run lives in a folder. Each stage reads what the earlier ones left there, adds its own files and is not computed
twice; a folder of another configuration is refused, never overwritten. `compare` does it for several methods at the
cost of the uniform LoRA: sum over matrices [out, in] of rank (in + out), plus the class token. `predict` and `merge`
need an adapter folder alone, plus its backbone.

Example:
    >>> config = RunConfig("vit_small_patch16_224", "my_images", budget="0.5%")
    >>> result = run(RunFolder.open("runs/mine", config))  # doctest: +SKIP
    >>> predict("runs/mine/adapter", ["photo.jpg"]).best(0)  # doctest: +SKIP
    ('cat', 0.97)
"""

from sensitune.runs._compare import DEFAULT_METHODS, ComparedRun, compare
from sensitune.runs._config import DEFAULT_BUDGET, DeviceName, Method, RunConfig, SensitivitySettings
from sensitune.runs._folder import RunFolder
from sensitune.runs._ingredients import backbone_spec, build_data
from sensitune.runs._methods import METHODS, MethodInfo
from sensitune.runs._presets import DEFAULT_PRESETS, PRESETS, PresetName, with_preset
from sensitune.runs._reporter import Reporter, Silent
from sensitune.runs._stages import run, run_allocate, run_evaluate, run_sensitivity, run_train
from sensitune.runs._use import Predictions, merge, open_image, predict

__all__ = [
    "DEFAULT_BUDGET",
    "DEFAULT_METHODS",
    "DEFAULT_PRESETS",
    "METHODS",
    "PRESETS",
    "ComparedRun",
    "DeviceName",
    "Method",
    "MethodInfo",
    "Predictions",
    "PresetName",
    "Reporter",
    "RunConfig",
    "RunFolder",
    "SensitivitySettings",
    "Silent",
    "backbone_spec",
    "build_data",
    "compare",
    "merge",
    "open_image",
    "predict",
    "run",
    "run_allocate",
    "run_evaluate",
    "run_sensitivity",
    "run_train",
    "with_preset",
]
