"""How large an image may be, how many are decoded at a time, and what is no image at all."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from sensitune.data import DataSettings, ImageTransform, PreparedImages, load_data, open_image
from sensitune.data._image_file import DecodingMemory
from sensitune.errors import DataError

Write = Callable[..., list[Path]]


@pytest.fixture(autouse=True)
def _limit_of_pillow() -> Iterator[None]:
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before


@pytest.fixture
def folder(write_images: Write, tmp_path: Path) -> Path:
    for name in ("images/ant", "images/bee"):
        write_images(name, 6)
    return tmp_path / "images"


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(folder: Path) -> None:
    with open_image(folder / "ant" / "000.png", max_pixels=144) as image:
        assert image.size == (12, 12)
    with pytest.raises(DataError, match="it has 144 pixels, more than `max_pixels`, 143"):
        open_image(folder / "ant" / "000.png", max_pixels=143)


def test_the_limit_of_a_folder_is_a_setting(folder: Path, write_images: Write) -> None:
    large = write_images("images/cat", 6, size=20)
    with pytest.raises(DataError, match=rf"{large[0]} cannot be read \(it has 400 pixels, .* 399\), nor can 5 more"):
        load_data(DataSettings(str(folder), max_pixels=399))
    assert load_data(DataSettings(str(folder), max_pixels=400)).num_classes == 3


def test_a_setting_above_pillow_s_limit_raises_it_there_too(folder: Path) -> None:
    Image.MAX_IMAGE_PIXELS = 60  # more than twice as many are an error of Pillow's, fewer a warning
    with pytest.raises(DataError, match="cannot be read"):
        load_data(DataSettings(str(folder)))
    data = load_data(DataSettings(str(folder), max_pixels=144))
    assert Image.MAX_IMAGE_PIXELS == 144
    assert PreparedImages(data.dataset["train"], ImageTransform(8))[0]["pixel_values"].shape == (3, 8, 8)


def test_images_are_held_to_the_limit_when_they_are_decoded_too(folder: Path) -> None:
    train = load_data(folder).dataset["train"]
    Image.MAX_IMAGE_PIXELS = 100
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(DataError, match="it has 144 pixels, more than"):
        PreparedImages(train, ImageTransform(8))[0]


def test_no_more_is_decoded_at_a_time_than_fits() -> None:
    memory = DecodingMemory(12 * 100 * 3)
    image, huge = Image.new("RGB", (10, 10)), Image.new("RGB", (100, 100))
    most = now = 0
    lock = threading.Lock()

    def decode(picture: Image.Image) -> None:
        nonlocal most, now
        with memory.taken_by(picture, encoded_pixels=0):
            with lock:
                now += 1
                most = max(most, now)
            alone.wait(0.01)
            with lock:
                now -= 1

    alone = threading.Event()
    threads = [threading.Thread(target=decode, args=(each,)) for each in (*[image] * 8, huge)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert 2 <= most <= 3  # the huge one, which never fits, went alone


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a FIFO is Unix's")
def test_a_fifo_among_the_images_is_left_out_by_name(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(folder / "ant" / "pipe.png")
    with caplog.at_level(logging.WARNING, logger="sensitune"):
        data = load_data(folder)
    assert f"{folder}/ant/pipe.png is left out: it is no file, but a FIFO" in caplog.text
    assert sum(data.split_sizes.values()) == 12
    with pytest.raises(DataError, match="it is no file"):
        open_image(folder / "ant" / "pipe.png")


def test_links_that_lead_in_a_circle_end(folder: Path) -> None:
    (folder / "ant" / "again").symlink_to(folder)
    (folder / "ant" / "self.png").symlink_to("self.png")
    (folder / "loop").symlink_to("loop")
    assert sum(load_data(folder).split_sizes.values()) == 12
