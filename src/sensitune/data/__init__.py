"""Images in folders, or the demo's -> labelled splits and the tensors of a batch (signatures first, bodies follow)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset as TorchDataset

from sensitune.data._transform import IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from sensitune.data._types import ImageData

if TYPE_CHECKING:
    from datasets import Dataset


def load_image_folder(
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    max_train: int | None = None,
    skip_unreadable: bool = False,
) -> ImageData:
    """A folder of class folders, with or without train/val/test above them."""
    raise NotImplementedError


def load_demo_data(*, seed: int = 0, train_size: int = 800, validation_size: int = 200, test_size: int | None = None) -> ImageData:
    """The solar-cell photographs of the package elpv-dataset; test_size None = the rest."""
    raise NotImplementedError


def load_data(
    source: str | os.PathLike[str], *, seed: int = 0, max_train: int | None = None, skip_unreadable: bool = False
) -> ImageData:
    """"demo" (or "elpv"), or a folder."""
    raise NotImplementedError


class PreparedImages(TorchDataset[dict[str, torch.Tensor]]):
    """A split under a transform, for a DataLoader or transformers.Trainer.

    item: {"pixel_values": [3, H, W] float32, "labels": int64 scalar}; the resized uint8 pixels are kept up to cache_bytes.
    """

    def __init__(self, split: Dataset, transform: ImageTransform, *, cache_bytes: int = 0) -> None:
        raise NotImplementedError


def batches(
    split: Dataset, transform: ImageTransform, *, batch_size: int, num_batches: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(pixel_values [B, 3, H, W] float32, labels [B] int64) in file order, never augmented."""
    raise NotImplementedError


__all__ = [
    "IMAGENET_MEAN", "IMAGENET_STD", "ImageData", "ImageTransform", "PreparedImages", "batches", "load_data", "load_demo_data", "load_image_folder",
]
