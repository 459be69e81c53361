"""An image file -> a Pillow image, within limits: of its pixels, and of what is decoded at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Condition
from typing import Final

from PIL import Image

from sensitune.errors import DataError

_DECODING_BYTES: Final = 2**30


def open_image(file: Path | BytesIO, *, max_pixels: int | None = None) -> Image.Image:
    """Open an image without decoding it.

    Args:
        file: The file, or its content.
        max_pixels: Pixels that it may have; None takes Pillow's own limit, ``PIL.Image.MAX_IMAGE_PIXELS``. A higher one
            becomes Pillow's limit in this process.

    Returns:
        The image, to be closed.

    Raises:
        DataError: If it is a folder, a FIFO or a device, or has too many pixels.
    """
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise DataError("it is no file")
    raise_pixel_limit(max_pixels)
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    image = Image.open(file)
    pixels = image.width * image.height
    if limit is not None and pixels > limit:
        image.close()
        raise DataError(f"it has {pixels:,} pixels, more than `max_pixels`, {limit:,}")
    return image


def raise_pixel_limit(max_pixels: int | None) -> None:
    """Let Pillow open larger images than it does, in this process.

    Args:
        max_pixels: As for `open_image`.
    """
    if max_pixels is not None and Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels


class DecodingMemory:
    """Lets so many images be decoded at a time as fit into some memory; one always is.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int = _DECODING_BYTES) -> None:
        self._size = self._free = size
        self._changed = Condition()

    @contextmanager
    def taken_by(self, image: Image.Image, *, encoded_pixels: int) -> Iterator[None]:
        """Wait until there is room for an image.

        Args:
            image: The image as it will be decoded.
            encoded_pixels: Pixels of the file, which may be decoded at a smaller size.

        Yields:
            Nothing.
        """
        # Pillow keeps 4 bytes a pixel, in up to three copies; a progressive JPEG's coefficients take 6 of the file's.
        asked = min(12 * image.width * image.height + 6 * encoded_pixels, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= asked)
            self._free -= asked
        try:
            yield
        finally:
            with self._changed:
                self._free += asked
                self._changed.notify_all()


def is_special(path: Path) -> bool:
    """Whether a path leads to something that is neither a file nor a folder: a FIFO, a socket, a device."""
    return os.path.exists(path) and not path.is_file() and not path.is_dir()
