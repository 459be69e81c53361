"""The house itself: its version, its layers, what its packages export, and what importing it costs."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import sensitune

REPOSITORY = Path(__file__).parents[1]
SOURCES = REPOSITORY / "src" / "sensitune"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = sorted(module.name for module in pkgutil.iter_modules(sensitune.__path__, "sensitune.") if module.ispkg)


def test_the_installed_version_is_the_one_of_the_project_file() -> None:
    assert version("sensitune") == PROJECT["project"]["version"]


@pytest.mark.parametrize("name", ["sensitune", *PACKAGES])
def test_every_name_a_package_promises_exists(name: str) -> None:
    package = importlib.import_module(name)
    assert [missing for missing in package.__all__ if not hasattr(package, missing)] == []
    assert len(set(package.__all__)) == len(package.__all__)


@pytest.mark.parametrize("name", ["sensitune", *PACKAGES])
def test_every_package_says_what_it_is_for(name: str) -> None:
    assert (importlib.import_module(name).__doc__ or "").strip()


def test_the_import_contract_places_every_package_once() -> None:
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]
    placed = [f"sensitune.{part.strip(' ()')}" for layer in contract["layers"] for part in layer.split("|")]
    assert len(placed) == len(set(placed))
    assert set(PACKAGES) <= set(placed)


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCES)))
def test_the_library_never_prints(path: Path) -> None:
    calls = (node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    assert not [call.lineno for call in calls if isinstance(call, ast.Name) and call.id == "print"]


def test_importing_the_library_leaves_pictures_terminals_and_data_sets_alone() -> None:
    heavy = ("matplotlib", "rich", "tyro", "datasets", "onnx")
    code = f"import sys, sensitune; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def _modules_with_examples() -> list[str]:
    paths = [path for path in SOURCES.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")]
    names = (".".join(path.relative_to(SOURCES.parent).with_suffix("").parts) for path in paths)
    return sorted(name.removesuffix(".__init__") for name in names)


@pytest.mark.parametrize("name", _modules_with_examples())
def test_the_examples_of_the_docstrings_do_what_they_say(name: str) -> None:
    done = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert done.attempted
    assert not done.failed
