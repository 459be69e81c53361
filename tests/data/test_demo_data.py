"""The demo's photographs, out of the installed package."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from datasets import Image as ImageFeature

from sensitune.data import DataSettings, ImageData, load_data
from sensitune.data._demo import DEMO_CLASSES, load_demo_data
from sensitune.errors import ArgumentError, DataError, MissingPackageError


@pytest.fixture(scope="module")
def demo() -> ImageData:
    return load_data("demo")


def paths_of(data: ImageData) -> list[Path]:
    splits = [split.cast_column("image", ImageFeature(decode=False)) for split in data.dataset.values()]
    return [Path(row["image"]["path"]) for split in splits for row in split]


def test_the_split_is_fixed(demo: ImageData) -> None:
    assert demo.split_sizes == {"train": 800, "validation": 200, "test": 1624}
    names = " ".join(path.name for path in paths_of(demo))
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "ebf886c6d8d3be90"


def test_every_class_keeps_its_share(demo: ImageData) -> None:
    shares = [[list(split["label"]).count(label) / len(split) for label in range(4)] for split in demo.dataset.values()]
    for share in shares:
        assert share == pytest.approx([1508 / 2624, 295 / 2624, 106 / 2624, 715 / 2624], abs=0.003)


def test_no_photograph_is_in_two_splits(demo: ImageData) -> None:
    contents = [hashlib.sha256(path.read_bytes()).digest() for path in paths_of(demo)]
    assert len(set(contents)) == len(contents) == 2624


def test_photographs_and_classes_are_those_of_the_package(demo: ImageData) -> None:
    first = demo.dataset["train"][0]
    assert first["image"].size == (300, 300)
    assert demo.class_names == DEMO_CLASSES
    assert demo.info["licence"].startswith("CC BY-NC-SA 4.0")
    assert demo.info["source"].startswith("elpv-dataset 1.")


def test_smaller_splits_can_be_asked_for() -> None:
    data = load_demo_data(train_size=8, validation_size=4, test_size=10)
    assert data.split_sizes == {"train": 8, "validation": 4, "test": 10}
    assert set(data.dataset["train"]["label"]) == {0, 1, 2, 3}
    assert len(load_data(DataSettings("elpv", max_train=5)).dataset["train"]) == 5


def test_the_seed_decides_the_split() -> None:
    one, two = (paths_of(load_demo_data(seed=seed, train_size=8, test_size=8)) for seed in (1, 2))
    assert one != two


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train_size": 3}, "`train_size` must be at least 4, one image per class. Got 3"),
        ({"validation_size": 0}, "must be at least 1. Got 0 and None"),
        ({"test_size": 0}, "must be at least 1. Got 200 and 0"),
        ({"train_size": 2500}, "The demo has 2,624 images; the splits ask for 2,701"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        load_demo_data(**sizes)


def pretend_package(monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | None) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_package(monkeypatch, None)
    with pytest.raises(MissingPackageError, match=r"Install the extra: pip install 'sensitune\[demo\]'"):
        load_data("demo")


def copied_package(demo: ImageData, tmp_path: Path, labels: str) -> ModuleSpec:
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "labels.csv").write_text(labels)
    for index, path in enumerate(paths_of(demo)[:8]):
        shutil.copy(path, tmp_path / "data" / "images" / f"{index}.png")
    return ModuleSpec("elpv_dataset", None, origin=str(tmp_path / "__init__.py"))


def test_files_of_the_same_content_are_kept_once(
    demo: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"images/{index}.png {index % 4 / 3} mono" for index in range(8)]
    pretend_package(monkeypatch, copied_package(demo, tmp_path, "\n".join(lines)))
    shutil.copy(tmp_path / "data/images/0.png", tmp_path / "data/images/7.png")
    data = load_demo_data(train_size=4, validation_size=1)
    assert data.split_sizes == {"train": 4, "validation": 1, "test": 2}
    assert data.info["duplicates_removed"] == 1


def test_a_label_that_is_no_probability_is_refused(
    demo: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_package(monkeypatch, copied_package(demo, tmp_path, "images/0.png 2.0 mono"))
    with pytest.raises(DataError, match=r"gives images/0.png the defect probability 2.0. Expected 0 to 1"):
        load_demo_data()
