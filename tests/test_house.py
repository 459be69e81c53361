"""The house itself: its version, its layers, what its packages export, and what importing it costs."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import pkgutil
import re
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
ROOMS = sorted(
    "sensitune." + ".".join(path.parent.relative_to(SOURCES).parts)
    for path in SOURCES.rglob("__init__.py")
    if path.parent != SOURCES
)
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (REPOSITORY / folder).rglob("*.py"))
# What users call that nothing else here does.
FOR_USERS = {
    "sensitune.advice": {"TextData"},
    "sensitune.data": {"load_image_folder"},
    "sensitune.report": {
        "figure_accuracy",
        "figure_by_block",
        "figure_by_operation",
        "figure_heat_map",
        "save_figure",
    },
}


def test_the_installed_version_is_the_one_of_the_project_file() -> None:
    assert version("sensitune") == PROJECT["project"]["version"]


@pytest.mark.parametrize("name", ["sensitune", *ROOMS])
def test_every_name_a_package_promises_exists(name: str) -> None:
    package = importlib.import_module(name)
    assert [missing for missing in package.__all__ if not hasattr(package, missing)] == []
    assert len(set(package.__all__)) == len(package.__all__)


@pytest.mark.parametrize("name", ["sensitune", *ROOMS])
def test_every_package_says_what_it_is_for(name: str) -> None:
    assert (importlib.import_module(name).__doc__ or "").strip()


def test_the_import_contract_places_every_package_once() -> None:
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]
    placed = [f"sensitune.{part.strip(' ()')}" for layer in contract["layers"] for part in layer.split("|")]
    assert len(placed) == len(set(placed))
    assert set(PACKAGES) <= set(placed)


def test_no_file_of_the_library_is_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES.rglob("*.py")}
    assert [str(path) for path, length in lengths.items() if length > 350] == []


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


def _imports(path: Path) -> set[tuple[str, str]]:
    """``(module, name)`` of every ``from module import name``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    return {(str(node.module), alias.name) for node in found for alias in node.names}


@functools.cache
def _users() -> list[tuple[Path, set[tuple[str, str]]]]:
    """What every file outside a room could import from it: sources, tests, benchmarks, examples."""
    folders = (SOURCES, *(REPOSITORY / name for name in ("tests", "benchmarks", "examples")))
    return [(path, _imports(path)) for folder in folders for path in sorted(folder.rglob("*.py"))]


@pytest.mark.parametrize("room", ROOMS)
def test_every_export_of_a_room_is_used_by_another_one_or_by_users(room: str) -> None:
    inside = Path(*room.split(".")[1:])
    own = (SOURCES / inside, REPOSITORY / "tests" / inside)
    others = [found for path, found in _users() if not any(path.is_relative_to(folder) for folder in own)]
    used = {name for found in others for module, name in found if module == room}
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    exports = set(importlib.import_module(room).__all__)
    shown = {name for name in exports if re.search(rf"({room}\.|from {room} import .*\b){name}\b", text)}
    assert exports - used - shown - FOR_USERS.get(room, set()) == set()


def _owners_of_private_imports(path: Path) -> set[str]:
    return {owner for module, _ in _imports(path) for owner, private, _ in [module.rpartition("._")] if private}


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCES)))
def test_no_room_reads_the_private_files_of_another(path: Path) -> None:
    room = ".".join(("sensitune", *path.parent.relative_to(SOURCES).parts))
    owners = _owners_of_private_imports(path)
    inside = {owner for owner in owners if room == owner or room.startswith(f"{owner}.")}
    assert owners - inside - {"sensitune"} == set()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_benchmark_or_example_reads_private_files(path: Path) -> None:
    assert {owner for owner in _owners_of_private_imports(path) if owner.split(".")[0] == "sensitune"} == set()
