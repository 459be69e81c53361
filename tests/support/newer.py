"""What only newer releases of other libraries have: a test of it is skipped where an older one is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import nn


def from_newer(module: str, name: str) -> Any:
    """A module's name, or the test is skipped with the reason."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        pytest.skip(f"the installed {module.partition('.')[0]} has no {name}")


def checkpoint_activations(model: Any) -> None:
    """Have a model of transformers checkpoint its activations; the method's name depends on the release."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def skip_before(package: str, release: str, why: str) -> None:
    """Skip the test where a library is older than a release, with what is wrong in it."""
    if Version(version(package)) < Version(release):
        pytest.skip(f"{package} {version(package)}: {why}")


def without_values(make: Callable[[], nn.Module]) -> nn.Module:
    """A model on the meta device; with its values where an older release computes with them while building."""
    try:
        with torch.device("meta"):
            return make()
    except (NotImplementedError, RuntimeError):
        return make()
