"""Single files out of other people's wheels, which are not installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def from_wheel(requirement: str, file: str, folder: Path) -> ModuleType:
    """Fetch a wheel and run one file of it as a module; its imports must be installed, or stand in `sys.modules`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    subprocess.run(command, check=True, timeout=500)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(file, folder))
    spec = spec_from_file_location(f"from_wheel_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pydantic look there
    spec.loader.exec_module(module)
    return module
