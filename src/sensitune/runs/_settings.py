"""Plain mappings -> frozen dataclasses, strictly: unknown keys and wrong types are errors with a way out."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sensitune.errors import ConfigError

T = TypeVar("T")

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def from_mapping(cls: type[T], values: Mapping[str, Any], *, prefix: str = "") -> T:
    """Build a dataclass, and the dataclasses in it, from a mapping.

    Args:
        cls: The dataclass.
        values: Field -> value; what is left out takes its default.
        prefix: What stands before the field names in messages, such as ``"recipe."``.

    Returns:
        The dataclass.

    Raises:
        ConfigError: If a key is unknown, missing, or has a value of the wrong type.
    """
    hints = get_type_hints(cls)
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(_describe_unknown(str(key), known, prefix))
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"The setting `{prefix}{field.name}` is missing. Give it a value.")
    return cls(**{key: convert(value, hints[key], prefix + key) for key, value in values.items()})


def _describe_unknown(key: str, known: list[str], prefix: str) -> str:
    close = get_close_matches(key, known, n=1, cutoff=0.0)
    return f"`{prefix}{key}` is not a setting. The closest one is `{prefix}{close[0]}`."


def convert(value: Any, hint: Any, name: str) -> Any:
    """A value as read from YAML -> a value of the annotated type.

    Args:
        value: What was read.
        hint: The annotation.
        name: Full name of the setting, for messages.

    Returns:
        The value.

    Raises:
        ConfigError: If it does not fit.
    """
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"`{name}` must be a group of settings. Got {value!r}.")
        return from_mapping(hint, value, prefix=f"{name}.")
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        fits, converted = _fit(value, option)
        if fits:
            return converted
    raise ConfigError(f"`{name}` must be {' or '.join(map(_describe_type, options))}. Got {value!r}.")


def _fit(value: Any, option: Any) -> tuple[bool, Any]:
    if get_origin(option) is Literal:
        return value in get_args(option), value
    if option is float:
        return _fit_float(value)
    # bool is a subclass of int, but `epochs: true` is a mistake.
    return isinstance(value, option) and (option is bool or not isinstance(value, bool)), value


def _fit_float(value: Any) -> tuple[bool, Any]:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False, value
    try:
        return True, float(value)  # YAML 1.1 reads 1e-3 as text: it wants 1.0e-3
    except ValueError:
        return False, value


def _describe_type(option: Any) -> str:
    if get_origin(option) is Literal:
        return "one of " + ", ".join(map(str, get_args(option)))
    return _WORDS[option]
