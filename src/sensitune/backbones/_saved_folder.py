"""A merged model of transformers as a folder in its own format, that any program with transformers loads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sensitune._files import atomic_folder
from sensitune.backbones._processor import PROCESSOR_NAME, processor_values
from sensitune.backbones._published import Triple
from sensitune.errors import ArgumentError, ModelError


def save_folder(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    class_names: Sequence[str],
    image_size: int,
    mean: Triple,
    std: Triple,
    interpolation: str,
    resize: int | None = None,
) -> None:
    """Write a plain model, head and classes included, with how its images are prepared.

    ``transformers.pipeline("image-classification", folder)`` reads it, and so does
    ``load_backbone(BackboneSpec(folder), num_classes=C, keep_head=True)``.

    Args:
        model: A model without tuner layers, as ``merge_and_unload`` returns it.
        folder: Where to write, see `check_folder`. Nothing half-written is left there on an error.
        class_names: Name of every class id of the head.
        image_size: As in `sensitune.data.ImageTransform`.
        mean: Likewise.
        std: Likewise.
        interpolation: Likewise.
        resize: Likewise.

    Raises:
        ModelError: If the model still has tuner layers.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ModelError("The model still has tuner layers. Call `merge_and_unload()` and save what it returns.")
    own: Any = model
    own.config.id2label = dict(enumerate(class_names))
    own.config.label2id = {name: index for index, name in enumerate(class_names)}
    values = processor_values(image_size, mean, std, interpolation=interpolation, resize=resize)
    with atomic_folder(folder) as temporary:
        own.save_pretrained(str(temporary))
        (temporary / PROCESSOR_NAME).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def check_folder(output: str | os.PathLike[str]) -> None:
    """Make sure that a merged model can be written as a folder without replacing anything.

    Args:
        output: Where to.

    Raises:
        ArgumentError: If it is a file, or looks like one, or a folder that is not empty.
    """
    path = Path(output)
    if path.suffix == ".safetensors" or path.is_file():
        raise ArgumentError(
            f"`output` of a merged model of transformers is a folder. Got {os.fspath(output)!r}. Name a new one."
        )
    if path.is_dir() and any(path.iterdir()):
        raise ArgumentError(f"`output` must be a new or empty folder. {os.fspath(output)} is not empty.")
