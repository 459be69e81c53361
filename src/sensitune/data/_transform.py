"""An image file's pixels -> the tensor a backbone expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """Resize, scale to [0, 1], normalise; and, for training only if asked, crop and flip at random."""

    image_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    resize: int | None = None
    augment: bool = False

    def __call__(self, image: Image.Image, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Pixels [3, image_size, image_size], float32, normalised."""
        raise NotImplementedError

    def for_evaluation(self) -> ImageTransform:
        """The same transform without augmentation."""
        return replace(self, augment=False)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageTransform:
        """Rebuild a transform from `to_dict`."""
        raise NotImplementedError(fields(cls))
