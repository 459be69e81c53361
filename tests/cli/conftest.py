"""A folder of coloured squares, and a run on it made by the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensitune_command import main

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "squares"
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(10):
            noise = generator.integers(-60, 60, size=(40, 40, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def settings(squares: Path) -> list[str]:
    return [
        *("--model", "vit_tiny_patch16_224", "--backbone.no-pretrained"),
        *("--backbone.image-size", "32", "--backbone.num-blocks", "2"),
        *("--data", str(squares), "--rank", "4", "--device", "cpu"),
        *("--sensitivity.num-batches", "2", "--sensitivity.batch-size", "4"),
        "--sensitivity.keep-halves",
        *("--epochs", "2", "--batch-size", "8"),
    ]


@pytest.fixture(scope="session")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; read it, do not change it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["run", *settings, "--budget", "9_000", "--output", str(folder)]) == 0
    return folder
