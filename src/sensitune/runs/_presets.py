"""A run's settings with a preset of its method."""

from __future__ import annotations

from dataclasses import replace

from sensitune.errors import ArgumentError
from sensitune.runs._config import RunConfig
from sensitune.runs.methods import METHODS, Method, Preset, PresetName


def with_preset(config: RunConfig, preset: PresetName) -> RunConfig:
    """A run's settings with those of a preset of its method.

    Args:
        config: The settings.
        preset: ``"paper"``, the published settings, or ``"best"``, those that the accuracy suite supports.

    Returns:
        New settings.
    """
    groups = preset_settings(config.method, preset)
    return replace(config, **{name: replace(getattr(config, name), **values) for name, values in groups.items()})


def preset_settings(method: Method, preset: PresetName) -> Preset:
    """What a preset of a method sets.

    Args:
        method: The method.
        preset: The preset's name.

    Returns:
        Group -> setting -> value.

    Raises:
        ArgumentError: If the method has no such preset.
    """
    if preset not in method.presets:
        owners = ", ".join(each.name for each in METHODS.values() if preset in each.presets)
        raise ArgumentError(f"`preset` belongs to the methods {owners}, not to {method.name}. Leave it out.")
    return method.presets[preset]
