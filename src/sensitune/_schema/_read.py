"""Plain values -> frozen dataclasses and back, checked against the annotations by pydantic."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sensitune._schema._documents import read_json, read_yaml
from sensitune._schema._mistakes import Problem, explain, show_path
from sensitune.errors import ArgumentError, ConfigError, SensituneError

T = TypeVar("T")

# Strict: "1" is no number and true is none either. A number that is not finite is refused.
_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")


def read(
    cls: type[T],
    values: object,
    *,
    where: str = "",
    source: str | os.PathLike[str] | None = None,
    error: type[SensituneError] = ConfigError,
) -> T:
    """Build a dataclass, and the dataclasses in it, from plain values, as YAML or JSON hold them.

    Args:
        cls: The dataclass.
        values: Field -> value; what is left out takes its default.
        where: Dotted name of the setting whose value this is, such as ``"recipe"``; stands before the names of fields
            in messages.
        source: The file that the values were read from, named in messages; None if there is none.
        error: The class of error to raise.

    Returns:
        The dataclass.

    Raises:
        SensituneError: Of the class `error`, in one sentence, if a key is unknown (the closest known one is named) or
            missing, or a value has the wrong type or is out of range.
    """
    try:
        # As JSON, since only there does pydantic take a mapping for a dataclass and a list for a tuple, and is strict.
        built: T = _adapter(cls).validate_json(_as_json(values))[0]  # type: ignore[arg-type]  # a class is hashable
        return built
    except ValidationError as found:
        problems = [replace(each, path=each.path[1:]) for each in _problems(found)]
        sentence = explain(problems, cls, values, where=where, python=False)
    except (TypeError, ValueError, RecursionError) as found:
        sentence = f"`{where or cls.__name__}` holds what no YAML or JSON file can: {found}."
    raise error(sentence if source is None else f"{show_path(source)}: {sentence}")


def load(cls: type[T], path: str | os.PathLike[str], *, error: type[SensituneError] = ConfigError) -> T:
    """Read a dataclass from a file.

    Args:
        cls: The dataclass.
        path: A JSON file, or a YAML file whose name ends in ``.yaml`` or ``.yml``.
        error: The class of error to raise.

    Returns:
        The dataclass.

    Raises:
        SensituneError: Of the class `error`, in one sentence that names the file, if it cannot be read or `read`
            refuses what it holds.
    """
    parse = read_yaml if Path(path).suffix.lower() in {".yaml", ".yml"} else read_json
    return read(cls, parse(path, error=error), source=path, error=error)


def _as_json(values: object) -> str:
    return json.dumps([values], default=_plain_value)


def _plain_value(value: object) -> Any:
    """What a call in Python may hold beside JSON's own types."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if is_dataclass(value):
        return to_plain(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def check(value: Any) -> None:
    """Hold a dataclass that was built in Python to the rules that `read` holds files to; for its ``__post_init__``.

    A whole number where any number may stand becomes a float, so that equal settings are written alike.

    Args:
        value: The dataclass.

    Raises:
        ArgumentError: In one sentence, if a field has the wrong type or is out of range.
    """
    names = [field.name for field in fields(value)]
    given = tuple(getattr(value, name) for name in names)
    try:
        kept = _fields_adapter(type(value)).validate_python(given)  # type: ignore[arg-type]  # likewise
    except ValidationError as found:
        problems = [replace(each, path=(names[int(each.path[0])], *each.path[1:])) for each in _problems(found)]
        values = dict(zip(names, given, strict=True))
        raise ArgumentError(explain(problems, type(value), values, where="", python=True)) from None
    for name, before, after in zip(names, given, kept, strict=True):
        if after is not before:
            object.__setattr__(value, name, after)


def to_plain(value: Any) -> dict[str, Any]:
    """A dataclass as plain values, ready for JSON or YAML.

    Args:
        value: The dataclass.

    Returns:
        Field -> value, with mappings for the dataclasses in it and lists for tuples; `read` takes it back.
    """
    adapter = _adapter(type(value))  # type: ignore[arg-type]  # a class is hashable
    plain: dict[str, Any] = adapter.dump_python((value,), mode="json")[0]
    return plain


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    # In a tuple, since pydantic takes no configuration for a dataclass itself; those inside inherit it.
    return TypeAdapter(GenericAlias(tuple, (cls,)), config=_CONFIG)  # type: ignore[arg-type]  # a type made at run time


@cache
def _fields_adapter(cls: type) -> TypeAdapter[Any]:
    """Of the values of all fields in order, so that checking them builds no second dataclass."""
    hints = get_type_hints(cls, include_extras=True)
    kinds = tuple(hints[field.name] for field in fields(cls))
    return TypeAdapter(GenericAlias(tuple, kinds), config=_CONFIG)  # type: ignore[arg-type]  # likewise


def _problems(found: ValidationError) -> list[Problem]:
    return [
        Problem(each["type"], each["loc"], each.get("ctx", {}).get("error"))
        for each in found.errors(include_url=False, include_input=False)
    ]
