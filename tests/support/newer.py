"""What only newer releases of other libraries have: a test of it is skipped where an older one is installed."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


def from_newer(module: str, name: str) -> Any:
    """A module's name, or the test is skipped with the reason."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        pytest.skip(f"the installed {module.partition('.')[0]} has no {name}")
