"""An image's pixels -> the tensor a backbone expects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps

from sensitune._schema import ImageSide, Positive, Rule, check
from sensitune.errors import ArgumentError, DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_FILTERS = {each.name.lower(): each for each in Image.Resampling}
Interpolation: TypeAlias = Annotated[str, Rule(f"one of {', '.join(_FILTERS)}", _FILTERS.__contains__)]


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """Resize, scale to [0, 1], normalise; and, where asked, crop and flip at random.

    ``y = (resized(x) / 255 - mean) / std`` per channel. With the defaults this is the VTAB-1k recipe: the whole image,
    bicubic (antialiased, as Pillow does it), no augmentation. ``ImageTransform(224, resize=256, augment=True)`` is the
    FGVC recipe's training transform and its `for_evaluation` the one with a centre crop.

    Attributes:
        image_size: Side of the output in pixels.
        mean: Per-channel mean of pixels in [0, 1]; ImageNet's by default.
        std: Per-channel standard deviation, likewise.
        interpolation: One of Pillow's filters: nearest, box, bilinear, hamming, bicubic, lanczos.
        resize: Side in pixels that the image is resized to before it is cropped to `image_size`; None resizes
            straight to `image_size`.
        augment: Crop at a random place instead of the centre, and flip left to right in one of two cases.
    """

    image_size: ImageSide
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[Positive, Positive, Positive] = IMAGENET_STD
    interpolation: Interpolation = "bicubic"
    resize: ImageSide | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.resize is not None and self.resize < self.image_size:
            raise ArgumentError(f"`resize` must be at least `image_size` ({self.image_size}). Got {self.resize}.")

    def __call__(self, image: Image.Image, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Transform one image.

        Args:
            image: Any Pillow image: grayscale, with a palette, with transparency (which is dropped), 16-bit grayscale,
                rotated by its EXIF tag.
            generator: Source of the crop and the flip; None is torch's global one. Unused without `augment`.

        Returns:
            ``[3, image_size, image_size]``, float32.

        Raises:
            DataError: If the pixels have no fixed range (32-bit integers or floats).
        """
        return self.finish(self.prepare(image), generator=generator)

    @property
    def prepared_size(self) -> int:
        """Side of what `prepare` returns, in pixels."""
        return self.resize or self.image_size

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """The first, costly half, the same in every epoch: decode and resize.

        Args:
            image: As for a call.

        Returns:
            ``[3, prepared_size, prepared_size]``, uint8.
        """
        size = (self.prepared_size, self.prepared_size)
        resized = to_rgb(image).resize(size, resample=_FILTERS[self.interpolation])
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    def finish(self, pixels: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """The second half: crop, flip, normalise.

        Args:
            pixels: What `prepare` returned.
            generator: As for a call.

        Returns:
            As a call.
        """
        cropped = self._crop(pixels, generator)
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (self.mean, self.std))
        return (cropped.float() / 255 - mean) / std

    def for_evaluation(self) -> ImageTransform:
        """The same transform without augmentation."""
        return replace(self, augment=False)

    def _crop(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        spare = self.prepared_size - self.image_size
        if not self.augment:
            return _window(pixels, spare // 2, spare // 2, self.image_size)
        top, left = torch.randint(spare + 1, (2,), generator=generator).tolist()
        window = _window(pixels, top, left, self.image_size)
        return window.flip(-1) if torch.rand((), generator=generator) < 0.5 else window


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image upright by its EXIF tag and convert it to 8-bit RGB.

    Of 16 bits a value the upper eight are kept; where the whole image would fit into 12 or 8 bits, as microscopes and
    scanners store them, those of the 12 or 8.

    Args:
        image: Any Pillow image.

    Returns:
        An image of mode ``RGB``.

    Raises:
        DataError: If the pixels have no fixed range (32-bit integers or floats).
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F"):
        raise DataError(
            f"An image of 32-bit pixels (mode {upright.mode!r}) has no fixed range. Convert it to 8 or 16 bits."
        )
    if upright.mode.startswith("I;16"):  # Pillow would clip 16-bit values at 255
        values = np.asarray(upright)
        bits = next(bits for bits in (8, 12, 16) if values.max(initial=0) < 1 << bits)
        upright = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    if upright.mode == "P":  # straight to RGB, Pillow warns of transparent palettes
        upright = upright.convert("RGBA")
    return upright.convert("RGB")


def _window(pixels: torch.Tensor, top: int, left: int, size: int) -> torch.Tensor:
    return pixels[:, top : top + size, left : left + size]
