"""From pixels to the tensor a backbone expects."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sensitune._schema import read, to_plain
from sensitune.data import ImageTransform
from sensitune.data._transform import IMAGENET_MEAN, IMAGENET_STD
from sensitune.errors import ArgumentError, ConfigError, DataError

PLAIN = ImageTransform(4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def picture(width: int = 37, height: int = 23) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_it_agrees_with_torchvision() -> None:
    reference = v2.Compose(
        [
            v2.Resize((16, 16), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    torch.testing.assert_close(ImageTransform(16)(picture()), reference(picture()))


def test_the_interpolation_is_the_one_asked_for() -> None:
    pixels = ImageTransform(8, interpolation="nearest").prepare(picture())
    expected = np.asarray(picture().resize((8, 8), Image.Resampling.NEAREST))
    assert torch.equal(pixels, torch.from_numpy(expected.copy()).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_three_channels(mode: str) -> None:
    image = Image.new("I;16", (5, 5), 256 * 77) if mode == "I;16" else picture().convert(mode)
    tensor = PLAIN(image)
    assert tensor.shape == (3, 4, 4)
    assert tensor.dtype == torch.float32


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    assert torch.equal(PLAIN(Image.new("I;16", (5, 5), 256 * 77)), torch.full((3, 4, 4), 77 / 255))


def test_a_palette_with_transparency_needs_no_warning() -> None:
    image = picture().convert("P")
    image.info["transparency"] = bytes(range(256))
    assert PLAIN(image).shape == (3, 4, 4)


def test_the_exif_orientation_is_followed() -> None:
    upright = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8).repeat(8, 0).repeat(8, 1))
    rotated = upright.copy()
    rotated.getexif()[0x0112] = 3  # upside down
    tensor = PLAIN(rotated)
    assert tensor[2, :, 0].min() == 1  # what was right is left
    assert torch.equal(tensor, PLAIN(upright.rotate(180)))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_fixed_range_are_refused(mode: str) -> None:
    with pytest.raises(DataError, match=f"32-bit pixels \\(mode '{mode}'\\) has no fixed range. Convert it"):
        PLAIN(Image.new(mode, (5, 5)))


def test_evaluation_crops_the_centre() -> None:
    whole = ImageTransform(8, resize=8).prepare(picture())
    cropped = ImageTransform(4, resize=8, augment=True).for_evaluation().finish(whole)
    torch.testing.assert_close(cropped, ImageTransform(8).finish(whole)[:, 2:6, 2:6])


def test_augmentation_crops_and_flips_within_the_resized_image() -> None:
    transform = ImageTransform(2, resize=3, augment=True)
    pixels = transform.prepare(picture())
    windows = [
        window
        for top in (0, 1)
        for left in (0, 1)
        for window in (pixels[:, top : top + 2, left : left + 2], pixels[:, top : top + 2, left : left + 2].flip(-1))
    ]
    seen = set()
    generator = torch.Generator().manual_seed(0)
    plain = ImageTransform(2)
    for _ in range(100):
        result = transform.finish(pixels, generator=generator)
        seen.add(next(index for index, window in enumerate(windows) if torch.equal(plain.finish(window), result)))
    assert seen == set(range(8))


def test_the_generator_decides_the_augmentation() -> None:
    transform = ImageTransform(4, resize=8, augment=True)
    first, again = (transform(picture(), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)


def test_it_survives_json_and_pickle() -> None:
    transform = ImageTransform(98, mean=(0.5, 0.5, 0.5), resize=128, augment=True)
    assert read(ImageTransform, json.loads(json.dumps(to_plain(transform)))) == transform
    assert pickle.loads(pickle.dumps(transform)) == transform


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`transform\.crop` is not a setting\. The closest one is `transform\."):
        read(ImageTransform, {"image_size": 98, "crop": 1}, where="transform")


def test_a_description_without_a_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"The setting `transform\.image_size` is missing"):
        read(ImageTransform, {"augment": True}, where="transform")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "`image_size` must be a whole number of at least 1 and at most 4,096. Got 0"),
        ({"image_size": 8, "resize": 4}, r"`resize` must be at least `image_size` \(8\). Got 4"),
        ({"image_size": 8, "interpolation": "cubic"}, "`interpolation` must be one of nearest, .* Got 'cubic'"),
        ({"image_size": 8, "mean": (0.5,)}, r"`mean` must be a tuple of 3 values. Got \(0.5,\)"),
        ({"image_size": 8, "std": (1.0, 0.0, 1.0)}, r"`std\[1\]` must be a number above 0. Got 0.0"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ImageTransform(**settings)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_fewer_bits_stored_in_sixteen_fill_the_range_too(bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 64).astype(np.uint16).reshape(8, 8)
    expected = torch.from_numpy((ramp >> (bits - 8)).astype(np.float32) / 255).expand(3, 8, 8)
    plain = ImageTransform(8, mean=(0, 0, 0), std=(1, 1, 1))
    torch.testing.assert_close(plain(Image.fromarray(ramp)), expected)
