"""Settings of SPT-LoRA by name: the published ones, and those that did best in our own ablation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, Literal

from sensitune.sweeps._config import RunConfig

PresetName = Literal["paper", "best"]

PRESETS: Final[Mapping[PresetName, Mapping[str, Any]]] = MappingProxyType(
    {
        # He et al., ICCV 2023, section 4.1 and the authors' scripts.
        "paper": MappingProxyType({"placement": "threshold", "lora_start": "random", "alpha": 10.0, "beta": 5.0}),
        # The one change that did better on the validation images of all three tasks of our ablation (docs/accuracy.md).
        "best": MappingProxyType({"placement": "threshold", "lora_start": "random", "alpha": 3.0, "beta": 5.0}),
    }
)
"""Preset -> settings of a run; what it does not name is left alone."""


def with_preset(config: RunConfig, preset: PresetName) -> RunConfig:
    """A run's settings with those of a preset.

    Args:
        config: The settings.
        preset: ``"paper"`` or ``"best"``.

    Returns:
        New settings.

    Raises:
        ArgumentError: If the preset does not go with the method.
    """
    return replace(config, **PRESETS[preset])
