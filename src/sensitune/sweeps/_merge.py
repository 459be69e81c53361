"""Settings of a run as plain values: laid over each other group by group, and by dotted names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sensitune._schema import shorten
from sensitune.errors import ConfigError


def merge_settings(*layers: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Lay settings over each other; within a group, what a later layer leaves out stays.

    Args:
        *layers: Setting or group -> value, from weak to strong.
        where: Dotted name of the group that they are in; empty for none.

    Returns:
        The settings.

    Raises:
        ConfigError: If something is a group in one layer and a value in another.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            before, name = merged.get(key), f"{where}.{key}" if where else key
            if key in merged and isinstance(before, Mapping) != isinstance(value, Mapping):
                wrong = value if isinstance(before, Mapping) else before
                raise ConfigError(f"`{name}` must be a group of settings. Got {shorten(wrong)}.")
            merged[key] = merge_settings(before or {}, value, where=name) if isinstance(value, Mapping) else value
    return merged


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted names as settings in groups.

    Args:
        settings: Such as ``{"recipe.epochs": 3}``.

    Returns:
        Such as ``{"recipe": {"epochs": 3}}``.
    """
    nested = []
    for name, value in settings.items():
        *groups, last = name.split(".")
        layer: dict[str, Any] = {last: value}
        for group in reversed(groups):
            layer = {group: layer}
        nested.append(layer)
    return merge_settings(*nested)


def dotted_names(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The names of all settings in groups.

    Args:
        settings: Setting or group -> value.
        prefix: Put before each name.

    Yields:
        Such as ``"recipe.epochs"``.
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from dotted_names(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
