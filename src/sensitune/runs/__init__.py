"""One run: from its settings to a trained adapter, and what the adapter is for.

    RunConfig ──Run.open──▶ sensitivity() ──▶ allocation() ──▶ train() ──▶ evaluate()
                            sensitivity.st    allocation.st    adapter/    evaluation.json

A run lives in a folder. Each stage takes what it needs from those before, adds its own files and is not computed
twice; a folder of another configuration is refused, never overwritten. Images and backbone are loaded once for all
stages. `compare` does it for several methods at the cost of the uniform LoRA: sum over matrices [out, in] of
rank (in + out), plus the class token. `predict`, `merge` and `export` need an adapter folder alone, plus its
backbone.

Example:
    >>> from sensitune.backbones import BackboneSpec
    >>> from sensitune.data import DataSettings
    >>> config = RunConfig(
    ...     BackboneSpec("vit_small_patch16_224"), DataSettings("my_images"), allocation=AllocationSettings(budget="1%")
    ... )
    >>> run = Run.open("runs/mine", config)  # doctest: +SKIP
    >>> run.train().test_accuracy_last  # doctest: +SKIP
    0.93
    >>> predict("runs/mine/adapter", ["photo.jpg"]).best(0)  # doctest: +SKIP
    ('cat', 0.97)
"""

from sensitune.runs._choice import read_choice
from sensitune.runs._compare import compare, comparing
from sensitune.runs._config import RunConfig
from sensitune.runs._evaluation import RecordedEvaluation
from sensitune.runs._export import export
from sensitune.runs._folder import RunFolder, check_finished
from sensitune.runs._graph import graph_nodes
from sensitune.runs._ladder import budget_ladder
from sensitune.runs._launch import check_versions, joined_processes, surroundings
from sensitune.runs._presets import preset_settings, with_preset
from sensitune.runs._reporter import Reporter, Silent
from sensitune.runs._run import Run
from sensitune.runs._settings import AllocationSettings, ComputeSettings, DeviceName, SensitivitySettings
from sensitune.runs._stability import stability_of
from sensitune.runs._test_split import images_of_test_split
from sensitune.runs._use import Predictions, merge, open_image, predict
from sensitune.runs.methods import METHODS, PresetName

__all__ = [
    "METHODS",
    "AllocationSettings",
    "ComputeSettings",
    "DeviceName",
    "Predictions",
    "PresetName",
    "RecordedEvaluation",
    "Reporter",
    "Run",
    "RunConfig",
    "RunFolder",
    "SensitivitySettings",
    "Silent",
    "budget_ladder",
    "check_finished",
    "check_versions",
    "compare",
    "comparing",
    "export",
    "graph_nodes",
    "images_of_test_split",
    "joined_processes",
    "merge",
    "open_image",
    "predict",
    "preset_settings",
    "read_choice",
    "stability_of",
    "surroundings",
    "with_preset",
]
