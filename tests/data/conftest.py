"""Small image folders, written by the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteImages = Callable[..., list[Path]]


@pytest.fixture
def write_images(tmp_path: Path) -> WriteImages:
    """Write `count` different pictures into a folder below the test's own."""

    def write(folder: str, count: int, *, suffix: str = ".png", size: int = 12) -> list[Path]:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(len(folder))
        paths = [tmp_path / folder / f"{index:03d}{suffix}" for index in range(count)]
        for path in paths:
            Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
        return paths

    return write
