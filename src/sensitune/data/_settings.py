"""Which images a run sees and how they become tensors, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sensitune._schema import ImageSide, NonEmptyText, PositiveInt, Seed, check
from sensitune.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class DataSettings:
    """A run's settings of its images."""

    source: NonEmptyText
    """Folder with one folder of images per class (with or without train, val and test above them), demo, the folder of
    a VTAB-1k task or FGVC set, a CSV or JSON list of images, or hf:OWNER/NAME."""
    root: NonEmptyText | None = None
    """Folder of a benchmark's data, or of the images that a table of paths names; None is the usual place."""
    train_on_validation: bool = False
    """Train on the training and the validation images together, with the settings that were chosen before."""
    split_seed: Seed = 0
    """Seed of a split that has to be made, of the training order, and of the choice of images."""
    max_train: PositiveInt | None = None
    """Use at most so many training images."""
    shots: PositiveInt | None = None
    """Use exactly so many training images of every class."""
    max_test: PositiveInt | None = None
    """Use at most so many test images, chosen at random."""
    test: bool = True
    """False leaves the test split alone: for runs that settings are chosen with."""
    skip_unreadable: bool = False
    """Leave damaged images out instead of stopping at the first."""
    max_pixels: PositiveInt | None = None
    """Pixels that an image may have before it counts as damaged; None is Pillow's limit, 89 million."""
    normalize: Literal["imagenet", "model"] = "imagenet"
    """Mean and standard deviation of the pixels: ImageNet's, or those the model was trained with."""
    resize: ImageSide | None = None
    """Resize to this side before cropping to the image size; None resizes straight to it."""
    augment: bool = False
    """Crop and flip the training images at random."""

    def __post_init__(self) -> None:
        check(self)
        if self.max_train is not None and self.shots is not None:
            raise ArgumentError(f"Give `max_train` or `shots`, not both. Got {self.max_train} and {self.shots}.")
