"""Items for a trainer and whole batches for a pass over the data."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from sensitune.data import ImageData, ImageTransform, PreparedImages, batches
from sensitune.data._folder import load_image_folder
from sensitune.errors import ArgumentError, DataError

SMALL = ImageTransform(8)


@pytest.fixture
def data(write_images: Callable[..., list[Path]], tmp_path: Path) -> ImageData:
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        write_images(name, 5)
    return load_image_folder(tmp_path)


def test_batches_follow_the_split_in_order(data: ImageData) -> None:
    train = data.dataset["train"]
    found = list(batches(train, SMALL, batch_size=4))
    assert [len(labels) for _, labels in found] == [4, 4, 2]
    assert torch.cat([labels for _, labels in found]).tolist() == list(train["label"])
    expected = torch.stack([SMALL(image) for image in train["image"]])
    assert torch.equal(torch.cat([pixels for pixels, _ in found]), expected)


def test_a_batch_is_float32_pixels_and_int64_labels(data: ImageData) -> None:
    pixels, labels = next(batches(data.dataset["train"], SMALL, batch_size=4))
    assert (pixels.shape, pixels.dtype) == ((4, 3, 8, 8), torch.float32)
    assert (labels.shape, labels.dtype) == ((4,), torch.int64)


@pytest.mark.parametrize(("num_batches", "sizes"), [(1, [4]), (2, [4, 4]), (9, [4, 4, 2])])
def test_the_number_of_batches_is_a_limit(num_batches: int, sizes: list[int], data: ImageData) -> None:
    found = batches(data.dataset["train"], SMALL, batch_size=4, num_batches=num_batches)
    assert [len(labels) for _, labels in found] == sizes


def test_batches_are_never_augmented(data: ImageData) -> None:
    augmented = ImageTransform(8, resize=12, augment=True)
    first, again = (next(batches(data.dataset["train"], augmented, batch_size=10))[0] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(("batch_size", "num_batches"), [(0, None), (4, 0)])
def test_sizes_below_one_are_refused_at_the_call(batch_size: int, num_batches: int | None, data: ImageData) -> None:
    with pytest.raises(ArgumentError, match=f"must be at least 1. Got {batch_size} and {num_batches}"):
        batches(data.dataset["train"], SMALL, batch_size=batch_size, num_batches=num_batches)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_collates_items(num_workers: int, data: ImageData) -> None:
    images = PreparedImages(data.dataset["validation"], SMALL)
    loader = DataLoader(images, batch_size=10, num_workers=num_workers)
    batch = next(iter(loader))
    assert batch["pixel_values"].shape == (10, 3, 8, 8)
    assert batch["labels"].tolist() == [0] * 5 + [1] * 5


def test_kept_pixels_are_those_that_would_be_computed_again(data: ImageData) -> None:
    train = data.dataset["train"]
    kept, fresh = PreparedImages(train, SMALL, cache_bytes=10_000), PreparedImages(train, SMALL)
    for _ in range(2):
        for index in range(len(fresh)):
            assert torch.equal(kept[index]["pixel_values"], fresh[index]["pixel_values"])


def test_kept_pixels_are_not_decoded_again(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    prepare = ImageTransform.prepare
    monkeypatch.setattr(ImageTransform, "prepare", lambda self, image: decoded.append(image) or prepare(self, image))
    images = PreparedImages(data.dataset["train"], SMALL, cache_bytes=3 * 8 * 8 * 4 + 1)
    for _ in range(3):
        for index in range(10):
            images[index]
    assert len(decoded) == 4 + 3 * 6  # four images fit and are decoded once


def test_crops_stay_random_when_pixels_are_kept(data: ImageData) -> None:
    images = PreparedImages(data.dataset["train"], ImageTransform(8, resize=12, augment=True), cache_bytes=10_000)
    crops = [images[0]["pixel_values"] for _ in range(8)]
    assert any(not torch.equal(crops[0], crop) for crop in crops[1:])


def test_negative_memory_is_refused(data: ImageData) -> None:
    with pytest.raises(ArgumentError, match=r"`cache_bytes` must be at least 0. Got -1"):
        PreparedImages(data.dataset["train"], SMALL, cache_bytes=-1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves the bad file open
def test_an_image_that_was_damaged_since_is_named(data: ImageData, tmp_path: Path) -> None:
    for path in (tmp_path / "val" / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    images = PreparedImages(data.dataset["validation"], SMALL)
    with pytest.raises(DataError, match=r"The image \S+/val/cat/000.png cannot be read \(.*\). Repair or remove it"):
        images[0]
    gc.collect()
