"""The real builders of TensorFlow Datasets, under its own mock of the data; needs the extra ``vtab``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensitune.data import VTAB_TASKS, load_vtab1k, prepare_vtab1k
from sensitune.data import _vtab_prepare as preparing
from sensitune.data._vtab import VtabTask
from sensitune.data._vtab_sources import VTAB_SOURCES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tfds = pytest.importorskip("tensorflow_datasets")

NUM_ROWS = 60
SIZES = {"train800": 8, "val200": 2, "train800val200": 10}


@pytest.fixture
def _small_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task with its classes, and as many test images as so small a source gives."""
    tasks = {}
    for name, task in VTAB_TASKS.items():
        test = VTAB_SOURCES[name].parts[2].rows(NUM_ROWS)
        tasks[name] = VtabTask(name, task.group, task.num_classes, (len(test),))
    monkeypatch.setattr(preparing, "VTAB_SIZES", SIZES)
    monkeypatch.setattr("sensitune.data._vtab.VTAB_SIZES", SIZES)
    monkeypatch.setattr("sensitune.data._vtab.VTAB_TASKS", tasks)
    monkeypatch.setattr("sensitune.data._vtab._check_classes", lambda *_: None)  # random labels need not be all


def scene(builder: Any, index: int) -> dict[str, Any]:
    """A consistent row of CLEVR or KITTI, which the mock's independent random lengths are not."""
    count = 3 + index % 8
    depths = np.array([[0.0, 0.0, 5.0 + (index + number) % 30] for number in range(count)], np.float32)
    known = builder.info.features["objects"].feature
    assert {"pixel_coords", "size"} <= set(known) or {"type", "location"} <= set(known)
    objects = {"size": np.zeros(count), "pixel_coords": depths, "type": np.arange(count), "location": depths}
    return {"image": np.full((4, 6, 3), index, np.uint8), "objects": objects}


@pytest.mark.usefixtures("_small_benchmark")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", VTAB_TASKS)
def test_every_task_is_made_from_its_real_builder(task: str, tmp_path: Path) -> None:
    source = VTAB_SOURCES[task]
    if source.manual:
        marker = tmp_path / "tfds" / "downloads" / "manual" / source.marker
        marker.mkdir(parents=True)
    scenes = source.builder in {"clevr", "kitti"}

    def as_data_source(builder: Any, *_: object, **__: object) -> list[dict[str, Any]]:
        return [scene(builder, index) for index in range(NUM_ROWS)]

    rows = as_data_source if scenes else None
    with tfds.testing.mock_data(num_examples=NUM_ROWS, as_data_source_fn=rows, data_dir=str(tmp_path / "tfds")):
        folder = prepare_vtab1k(task, tmp_path / "out")
        builder = tfds.builder(source.builder)
    data = load_vtab1k(task, root=tmp_path / "out")
    assert data.split_sizes == {"train": 8, "validation": 2, "test": len(source.parts[2].rows(NUM_ROWS))}
    assert set(data.dataset["test"]["label"]) <= set(range(VTAB_TASKS[task].num_classes))
    features = builder.info.features
    if "label" in features:
        assert features["label"].num_classes == VTAB_TASKS[task].num_classes
    assert (folder / "checksums.sha256").read_text().count(".png") == 10 + data.split_sizes["test"]
