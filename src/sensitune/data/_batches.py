"""A split under a transform: single items for a trainer, whole batches for a pass over the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

from sensitune.data._image_file import open_image
from sensitune.data._transform import ImageTransform
from sensitune.data._types import labels_of
from sensitune.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from datasets import Dataset


class PreparedImages(TorchDataset[dict[str, torch.Tensor]]):
    """A split under a transform, for a `DataLoader` or `transformers.Trainer`.

    An item is ``{"pixel_values": [3, H, W] float32, "labels": [] int64}``. Decoding and resizing cost more than a small
    model's forward pass on a CPU, so the resized uint8 pixels can be kept between epochs; random crops and flips come
    after them and stay random. What is kept is bit-equal to what would be computed again.

    Args:
        split: Images and labels, as in `ImageData.dataset`.
        transform: What happens to each image.
        cache_bytes: Memory for resized pixels, ``3 * prepared_size**2`` bytes an image; the first images
            that fit are kept, 0 keeps none. Each worker process of a loader would keep its
            own, so use it with ``num_workers=0``.

    Raises:
        ArgumentError: If `cache_bytes` is negative.
        DataError: By an item whose image cannot be read.
    """

    def __init__(self, split: Dataset, transform: ImageTransform, *, cache_bytes: int = 0) -> None:
        if cache_bytes < 0:
            raise ArgumentError(f"`cache_bytes` must be at least 0. Got {cache_bytes}.")
        self.transform = transform
        self.labels = torch.tensor(labels_of(split), dtype=torch.int64)
        self._mode: str | None = split.features["image"].mode
        self._split = _undecoded(split)
        self._max_pixels = Image.MAX_IMAGE_PIXELS  # a worker process may have another limit of its own
        self._cache: dict[int, torch.Tensor] = {}
        self._num_cached = min(len(split), cache_bytes // (3 * transform.prepared_size**2))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.transform.finish(self._pixels(index)), "labels": self.labels[index]}

    def _pixels(self, index: int) -> torch.Tensor:
        if index in self._cache:
            return self._cache[index]
        pixels = self._decode(index)
        if 0 <= index < self._num_cached:
            self._cache[index] = pixels
        return pixels

    def _decode(self, index: int) -> torch.Tensor:
        file = self._split[index]["image"]
        try:
            with open_image(_source(file), max_pixels=self._max_pixels) as image:
                return self.transform.prepare(image.convert(self._mode) if self._mode else image)
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
            name = (file and file["path"]) or f"number {index} of the split"
            raise DataError(f"The image {name} cannot be read ({error}). Repair or remove it.") from error


def _undecoded(split: Dataset) -> Dataset:
    from datasets import Image as ImageFeature

    return split.cast_column("image", ImageFeature(decode=False))


def _source(file: Mapping[str, Any] | None) -> Path | BytesIO:
    """Where an image lies, or what it holds."""
    if file is None:
        raise DataError("there is none")
    if file["bytes"] is not None:
        return BytesIO(file["bytes"])
    return Path(file["path"])


def batches(
    split: Dataset, transform: ImageTransform, *, batch_size: int, num_batches: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Go through a split in its own order, without augmentation.

    Args:
        split: Images and labels, as in `ImageData.dataset`.
        transform: What happens to each image; its augmentation is left out.
        batch_size: Images in a batch; the last batch of the split may be smaller.
        num_batches: Stop after so many; a split that is shorter ends earlier. None goes through all of it.

    Returns:
        An iterator over pixels ``[B, 3, H, W]`` float32 and labels ``[B]`` int64.

    Raises:
        ArgumentError: If `batch_size` or `num_batches` is below 1; raised at the call, not at the first batch.
    """
    if batch_size < 1 or (num_batches is not None and num_batches < 1):
        raise ArgumentError(f"`batch_size` and `num_batches` must be at least 1. Got {batch_size} and {num_batches}.")
    images = PreparedImages(split, transform.for_evaluation())
    stop = len(images) if num_batches is None else min(num_batches * batch_size, len(images))
    return (_stack(images, range(start, min(start + batch_size, stop))) for start in range(0, stop, batch_size))


def _stack(images: PreparedImages, indices: range) -> tuple[torch.Tensor, torch.Tensor]:
    items = [images[index] for index in indices]
    return torch.stack([item["pixel_values"] for item in items]), torch.stack([item["labels"] for item in items])
