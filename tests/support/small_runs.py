"""Fixtures of `tests/runs` and `tests/sweeps`: a folder of coloured squares, and a run on it that takes a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sensitune.backbones import BackboneSpec
from sensitune.data import DataSettings
from sensitune.runs import AllocationSettings, ComputeSettings, Run, RunConfig, RunFolder, SensitivitySettings
from sensitune.training import Recipe

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


def write_images(folder: Path, *, per_class: int = 10) -> Path:
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            noise = generator.integers(-60, 60, size=(40, 40, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def changed(config: RunConfig, **changes: Any) -> RunConfig:
    """A run's settings with some replaced: ``changed(config, allocation={"rank": 2}, seed=1)``."""
    groups = {name: replace(getattr(config, name), **each) for name, each in changes.items() if isinstance(each, dict)}
    return replace(config, **changes | groups)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "squares")


@pytest.fixture(scope="session")
def config(images: Path) -> RunConfig:
    return RunConfig(
        BackboneSpec("vit_tiny_patch16_224", pretrained=False, image_size=32, num_blocks=2),
        DataSettings(str(images)),
        allocation=AllocationSettings(budget=9_000, rank=4),
        sensitivity=SensitivitySettings(num_batches=2, batch_size=4),
        recipe=Recipe(epochs=3, warmup_share=1 / 3, batch_size=8, learning_rate=3e-3),
        compute=ComputeSettings(device="cpu"),
    )


@pytest.fixture(scope="session")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that went through all stages; read it, do not change it."""
    run = Run.open(tmp_path_factory.mktemp("runs") / "finished", config)
    run.train()
    return run.folder
