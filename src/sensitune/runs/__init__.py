"""One run: from its settings to a trained adapter, and what the adapter is for.

    RunConfig ──Run.open──▶ sensitivity() ──▶ allocation() ──▶ train() ──▶ evaluate()
                            sensitivity.st    allocation.st    adapter/    evaluation.json

A run lives in a folder. Each stage takes what it needs from those before, adds its own files and is not computed
twice; a folder of another configuration is refused, never overwritten. Images and backbone are loaded once for all
stages. `compare` does it for several methods at the cost of the uniform LoRA: sum over matrices [out, in] of
rank (in + out), plus the class token. `predict` and `merge` need an adapter folder alone, plus its backbone.

Example:
    >>> config = RunConfig("vit_small_patch16_224", "my_images", budget="0.5%")
    >>> run = Run.open("runs/mine", config)  # doctest: +SKIP
    >>> run.train().test_accuracy_last  # doctest: +SKIP
    0.93
    >>> predict("runs/mine/adapter", ["photo.jpg"]).best(0)  # doctest: +SKIP
    ('cat', 0.97)
"""

from sensitune.runs._compare import DEFAULT_METHODS, compare
from sensitune.runs._config import DEFAULT_BUDGET, DeviceName, Method, RunConfig, SensitivitySettings
from sensitune.runs._folder import RunFolder
from sensitune.runs._methods import METHODS, MethodInfo
from sensitune.runs._presets import DEFAULT_PRESETS, PRESETS, PresetName, with_preset
from sensitune.runs._reporter import Reporter, Silent
from sensitune.runs._run import Run
from sensitune.runs._use import Predictions, merge, open_image, predict

__all__ = [
    "DEFAULT_BUDGET",
    "DEFAULT_METHODS",
    "DEFAULT_PRESETS",
    "METHODS",
    "PRESETS",
    "DeviceName",
    "Method",
    "MethodInfo",
    "Predictions",
    "PresetName",
    "Reporter",
    "Run",
    "RunConfig",
    "RunFolder",
    "SensitivitySettings",
    "Silent",
    "compare",
    "merge",
    "open_image",
    "predict",
    "with_preset",
]
