"""The methods that a run can have, each one value: what it is called, needs, places, trains and offers as presets.

    settings, outline, scores ──Method.allocate──▶ Allocation, or None where nothing is placed
                          run ──Method.make_tuned──▶ PEFT model ready to train

| family | methods |
|---|---|
| placed | by scores (spt-lora, spt-adapter, sparse, layerwise, neuron), at random, or everywhere (lora, adapter, ...) |
| whole | full |
| stock | peft: any other PEFT configuration |
| chosen | auto: tries others, and is the best of them |
"""

from sensitune.runs.methods._auto import AutoMethod, Plan
from sensitune.runs.methods._method import Method, Preset, PresetName
from sensitune.runs.methods._stock import read_peft
from sensitune.runs.methods._table import METHODS

__all__ = ["METHODS", "AutoMethod", "Method", "Plan", "Preset", "PresetName", "read_peft"]
