"""What is released: a wheel and a source distribution that give the same package, and work without the sources."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        cwd="/",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(sources: Path, kind: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_the_command_and_its_types(wheel: Path) -> None:
    sources = {
        path.relative_to(REPOSITORY / "src").as_posix()
        for path in (REPOSITORY / "src").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    found = {name for name in names(wheel) if ".dist-info/" not in name}
    assert found == sources
    assert {"sensitune/py.typed", "sensitune_command.py"} <= found


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(REPOSITORY, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.name.startswith("sensitune-"))
    assert names(build(unpacked, "wheel", tmp_path / "wheel")) == names(wheel)


def test_the_wheel_works_without_the_sources(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", place, wheel)
    where = {"PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}
    assert run(place / "bin" / "sensitune", "--version", **where) == "sensitune 0.1.0\n"
    script = "import sensitune, sensitune.runs as r; print(sensitune.__file__); print(r.METHODS['spt-lora'].name)"
    assert run(sys.executable, "-c", script, **where).splitlines() == [str(place / "sensitune/__init__.py"), "spt-lora"]
