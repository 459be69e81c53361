"""What transformers' ``preprocessor_config.json`` says of a model's images, and one that says what ours were."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from sensitune._schema import shorten
from sensitune.backbones._published import IMAGENET_NORMALISATION, Triple
from sensitune.backbones._types import BackboneSpec
from sensitune.errors import ModelError

_logger = logging.getLogger(__name__)

PROCESSOR_NAME: Final = "preprocessor_config.json"
_JOINT_NAME: Final = "processor_config.json"  # where newer releases keep it, beside a tokenizer's
_LEVELS: Final = 255  # of a pixel


@dataclass(frozen=True)
class ImageInput:
    """What a model expects of its images, as in `Backbone`."""

    image_size: int
    mean: Triple
    std: Triple
    interpolation: str


def read_image_input(folder: Path, config: Any, spec: BackboneSpec) -> ImageInput:
    """Read what a model in transformers' format expects of its images.

    Args:
        folder: The model's.
        config: Its configuration, which says the size where the processor does not.
        spec: Its name, and the size that was asked for.

    Returns:
        It. Where there is no such file, or it is silent, a logged line says what is taken.

    Raises:
        ModelError: If the file cannot be read or makes no sense, or nobody says a size.
    """
    values = _read(folder, spec.name)
    if values is None:
        _logger.warning(
            "%s has no %s: the image size is config.json's, mean and std are ImageNet's, resizing is bicubic.",
            spec.name,
            PROCESSOR_NAME,
        )
        values = {}
    try:
        size = spec.image_size or _side(values) or _side({"size": _configured_size(config)})
        mean, std = _normalisation(values)
        interpolation = Image.Resampling(values.get("resample", Image.Resampling.BICUBIC)).name.lower()
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise ModelError(
            f"{PROCESSOR_NAME} of {spec.name} makes no sense ({shorten(str(error))}). Restore it, or remove it."
        ) from error
    if size is None:
        raise ModelError(
            f"Neither {PROCESSOR_NAME} nor config.json of {spec.name} says an image size. Set `image_size`."
        )
    return ImageInput(size, mean, std, interpolation)


def processor_values(
    image_size: int, mean: Triple, std: Triple, *, interpolation: str, resize: int | None
) -> dict[str, Any]:
    """The content of a ``preprocessor_config.json`` for images that were prepared as an `ImageTransform` does.

    Args:
        image_size: Side of the square input in pixels.
        mean: Per-channel mean of pixels in [0, 1].
        std: Per-channel standard deviation, likewise.
        interpolation: One of Pillow's filters by name.
        resize: Side that images are resized to before they are cropped; None = there is no crop.

    Returns:
        Values for JSON.
    """
    resized, side = resize or image_size, {"height": image_size, "width": image_size}
    crop = {} if resize is None else {"do_center_crop": True, "crop_size": side}
    return {
        "image_processor_type": "ViTImageProcessor" if resize is None else "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": resized, "width": resized},
        "resample": int(Image.Resampling[interpolation.upper()]),
        **crop,
        "do_rescale": True,
        "rescale_factor": 1 / _LEVELS,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    for file, key in ((PROCESSOR_NAME, None), (_JOINT_NAME, "image_processor")):
        if (folder / file).is_file():
            try:
                values = json.loads((folder / file).read_text(encoding="utf-8"))
                found = values if key is None else values.get(key)
            except (OSError, ValueError, AttributeError, RecursionError) as error:
                raise ModelError(f"{file} of {name} cannot be read ({type(error).__name__}). Restore it.") from error
            if isinstance(found, dict):
                return found
            if key is None:
                raise ModelError(f"{file} of {name} holds no table of values. Restore it.")
    return None


def _side(values: dict[str, Any]) -> int | None:
    """The side of what the model sees: of the crop, if images are cropped, else of what they are resized to."""
    cropped = values.get("do_center_crop") and values.get("crop_size")
    size = values["crop_size"] if cropped else values.get("size")
    if isinstance(size, dict):
        sides = [size[key] for key in ("height", "width", "shortest_edge") if size.get(key) is not None]
    else:
        sides = list(size) if isinstance(size, (list, tuple)) else [] if size is None else [size]
    if any(side != sides[0] for side in sides):
        raise ValueError(f"images of {' × '.join(map(str, sides))} pixels are not square")
    return int(sides[0]) if sides else None


def _configured_size(config: Any) -> Any:
    return getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", None)


def _normalisation(values: dict[str, Any]) -> tuple[Triple, Triple]:
    """Mean and standard deviation of pixels in [0, 1], whatever the processor scales them to."""
    scale = values.get("rescale_factor", 1 / _LEVELS) * _LEVELS if values.get("do_rescale", True) else float(_LEVELS)
    shift = 1.0 if values.get("rescale_offset") else 0.0
    if values.get("do_normalize", True):
        mean = values.get("image_mean") or IMAGENET_NORMALISATION[0]
        std = values.get("image_std") or IMAGENET_NORMALISATION[1]
    else:
        mean, std = (0.0,) * 3, (1.0,) * 3
    return _triple((each + shift) / scale for each in _three(mean)), _triple(each / scale for each in _three(std))


def _three(values: Any) -> list[float]:
    given = list(values) if isinstance(values, (list, tuple)) else [values] * 3
    if len(given) != 3:
        raise ValueError(f"{len(given)} values for three channels")
    return [float(each) for each in given]


def _triple(values: Any) -> Triple:
    first, second, third = (float(each) for each in values)
    return first, second, third
