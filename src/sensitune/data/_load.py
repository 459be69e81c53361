"""One name for every source of images."""

from __future__ import annotations

import os

from sensitune.data._demo import load_demo_data
from sensitune.data._folder import load_image_folder
from sensitune.data._types import ImageData

DEMO_NAMES = ("demo", "elpv")


def load_data(
    source: str | os.PathLike[str],
    *,
    seed: int = 0,
    max_train: int | None = None,
    skip_unreadable: bool = False,
) -> ImageData:
    """Load data by name or from a folder.

    Args:
        source: ``"demo"`` (or ``"elpv"``) for the demo's photographs, anything else is an image folder; a folder of
            that name is ``"./demo"``.
        seed: Of a split that has to be made, and of the training order.
        max_train: Keep at most so many training images; None keeps all (for the demo, 800).
        skip_unreadable: Leave damaged images of a folder out and count them, instead of refusing it.

    Returns:
        The data.

    Raises:
        ArgumentError: If `max_train` is too small.
        DataError: If the source cannot be used as it is.
    """
    if source in DEMO_NAMES:
        return load_demo_data(seed=seed) if max_train is None else load_demo_data(seed=seed, train_size=max_train)
    return load_image_folder(source, seed=seed, max_train=max_train, skip_unreadable=skip_unreadable)
