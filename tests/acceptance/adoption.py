"""Run PEFT's test classes, unedited, with our tables in the place of theirs."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "peft_tests"


def locate(folder: Path) -> None:
    """Make the unpacked test folder importable; it has no ``__init__`` of its own."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package


def adopt(module: str, tables: dict[str, Any], *, single: dict[str, list[Any]] | None = None) -> dict[str, type]:
    """The test classes of one of PEFT's test modules, parametrised with our tables.

    Args:
        module: Name of the module, for example ``test_custom_models``.
        tables: Name of a module-level table -> what replaces its content.
        single: Name of a test -> what replaces the values of its only parameter, for lists written in the decorator.

    Returns:
        Class name -> class, for the namespace of a module that pytest collects.
    """
    theirs = importlib.import_module(f"{PACKAGE}.{module}")
    classes = {
        name: value
        for name, value in vars(theirs).items()
        if name.startswith("Test") and inspect.isclass(value) and value.__module__ == theirs.__name__
    }
    functions = [function for each in classes.values() for function in vars(each).values() if callable(function)]
    for name, ours in tables.items():
        _replace(getattr(theirs, name), ours, functions)
    for name, values in (single or {}).items():
        for function in functions:
            if getattr(function, "__name__", None) == name:
                function.pytestmark = [pytest.mark.parametrize(function.pytestmark[0].args[0], values).mark]
    return classes


def _replace(table: Any, ours: Any, functions: list[Any]) -> None:
    """Change a table in place; a tuple cannot change, so the decorators that hold it are given ours."""
    if isinstance(table, list):
        table[:] = ours
    elif isinstance(table, dict):
        table.clear()
        table.update(ours)
    else:
        for function in functions:
            marks = getattr(function, "pytestmark", [])
            function.pytestmark = [
                pytest.mark.parametrize(mark.args[0], ours).mark if mark.args[1:] and mark.args[1] is table else mark
                for mark in marks
            ]
