"""What every test gets: one thread, fixed seeds, no network, no display, and its own folder to write in."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

# Read when the libraries are imported, so they are set before any of them is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).parents[1]

pytest_plugins = ["small_runs"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path in a test ends in the test's own folder."""
    monkeypatch.chdir(tmp_path)


def _files_of_the_repository() -> set[Path]:
    """What lies beside, in or under ``src`` and ``tests``, but for sources, hidden files and caches."""
    found = set(REPOSITORY.iterdir())
    for part in ("src", "tests"):
        found.update(path for path in (REPOSITORY / part).rglob("*") if "__pycache__" not in path.parts)
    return {path for path in found if not path.name.startswith(".") and path.suffix != ".py" and not path.is_dir()}


@pytest.fixture(scope="session", autouse=True)
def _tests_leave_no_files() -> Iterator[None]:
    before = _files_of_the_repository()
    yield
    left = sorted(str(path) for path in _files_of_the_repository() - before)
    assert not left, f"Tests must write to their own folder only. Left in the repository: {left}."
