"""Parts of other people's wheels, which are not installed: a file as a module, a function alone."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any


def fetch_wheel(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    subprocess.run(command, check=True, timeout=500)
    (wheel,) = folder.glob("*.whl")
    return wheel


def module_of(wheel: Path, file: str) -> ModuleType:
    """One file as a module; what it imports must be installed, or stand in `sys.modules`."""
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(file, wheel.parent))
    spec = spec_from_file_location(f"from_wheel_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pydantic look there
    spec.loader.exec_module(module)
    return module


def function_of(wheel: Path, file: str, name: str) -> Any:
    """One function that needs nothing around it."""
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read(file))
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    scope: dict[str, Any] = {}
    code = ast.Module([ast.ImportFrom("__future__", [ast.alias("annotations")], 0), found], [])
    exec(compile(ast.fix_missing_locations(code), file, "exec"), scope)
    return scope[name]


def text_of(wheel: Path, file: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(file).decode()
