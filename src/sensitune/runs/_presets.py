"""Settings of SPT by name: the published ones, and those that the accuracy suite supports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, Literal

from sensitune.errors import ArgumentError
from sensitune.runs._config import GRADIENT_START_METHODS, SPT_METHODS, Method, RunConfig

PresetName = Literal["paper", "best"]
DEFAULT_PRESETS: Final[Mapping[Method, PresetName]] = MappingProxyType({"spt-lora": "best", "spt-adapter": "best"})
"""Method -> what the command line and `compare` take: what the accuracy suite supports on validation images at every
learning rate tried (docs/accuracy.md). Sparse values alone gain from it only at high ones, so they take none. The
fields of `RunConfig` by themselves default to the published values."""

_THRESHOLDS = {"placement": "threshold", "alpha": 10.0, "beta": 5.0}

PRESETS: Final[Mapping[PresetName, Mapping[str, Any]]] = MappingProxyType(
    {
        # He et al., ICCV 2023, section 4.1 and the authors' scripts.
        "paper": MappingProxyType(_THRESHOLDS | {"lora_start": "random", "recipe": {"in_place_rate": 1.0}}),
        # The two changes that did better on validation images (docs/accuracy.md); where parameters go is the paper's.
        "best": MappingProxyType(_THRESHOLDS | {"lora_start": "gradient", "recipe": {"in_place_rate": 0.1}}),
    }
)
"""Preset -> settings of a run; what it does not name is left alone, and only LoRAs have a `lora_start`."""


def with_preset(config: RunConfig, preset: PresetName) -> RunConfig:
    """A run's settings with those of a preset.

    Args:
        config: The settings.
        preset: ``"paper"`` or ``"best"``.

    Returns:
        New settings.

    Raises:
        ArgumentError: If the method is none of SPT's.
    """
    if config.method not in SPT_METHODS:
        raise ArgumentError(
            f"`preset` belongs to the methods {', '.join(SPT_METHODS)}, not to {config.method}. Leave it out."
        )
    settings = dict(PRESETS[preset])
    if config.method not in GRADIENT_START_METHODS:
        del settings["lora_start"]
    return replace(config, **settings | {"recipe": replace(config.recipe, **settings["recipe"])})
