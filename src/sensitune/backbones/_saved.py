"""A merged model as one safetensors file that says how to build it again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from sensitune._files import atomic_write
from sensitune.backbones._hash import weights_hash
from sensitune.backbones._reading import damaged
from sensitune.backbones._types import BackboneSpec
from sensitune.errors import ArgumentError, CheckpointError, ModelError

_KEY = "sensitune_checkpoint"


def save_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    spec: BackboneSpec,
    class_names: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a plain model, head included, as one safetensors file.

    ``load_backbone(BackboneSpec(name, checkpoint=path), num_classes=C, keep_head=True)`` reads it back.

    Args:
        model: A model without tuner layers, as ``merge_and_unload`` returns it.
        path: Where to write; must end in ``.safetensors``. Nothing half-written is left there on an error.
        spec: What the model was built from.
        class_names: Name of every class id of the head; empty when unknown.
        preprocessing: How images became tensors: ``image_size``, ``mean``, ``std``, ``interpolation`` and whatever else
            `sensitune.data.ImageTransform` records. None leaves the model's own in force.
        metadata: Anything else worth keeping that goes to JSON.

    Raises:
        ArgumentError: If the path has another suffix.
        ModelError: If the model still has tuner layers.
    """
    if Path(path).suffix != ".safetensors":
        raise ArgumentError(f"`path` of a merged checkpoint must end in .safetensors. Got {os.fspath(path)!r}.")
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ModelError("The model still has tuner layers. Call `merge_and_unload()` and save what it returns.")
    settings = {
        "versions": {name: version(name) for name in ("sensitune", "timm", "torch")},
        "spec": spec.to_dict(),
        "class_names": list(class_names),
        "preprocessing": dict(preprocessing or {}),
        "metadata": dict(metadata or {}),
        "weights_hash": weights_hash(model),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", _KEY: json.dumps(settings)})


def read_checkpoint_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_checkpoint` wrote beside the weights.

    Args:
        path: A merged checkpoint.

    Returns:
        The keys ``versions``, ``spec``, ``class_names``, ``preprocessing``, ``metadata`` and ``weights_hash``.

    Raises:
        CheckpointError: If the file is damaged or was not written by `save_checkpoint`.
    """
    settings = saved_settings(Path(path))
    if settings is None:
        raise CheckpointError(
            f"{os.fspath(path)} was not written by Sensitune's `save_checkpoint`: it has no settings."
        )
    return settings


def saved_settings(path: Path) -> dict[str, Any] | None:
    """The settings of a Sensitune checkpoint.

    Args:
        path: Any checkpoint.

    Returns:
        What `save_checkpoint` wrote beside the weights; None for a file of another origin.

    Raises:
        CheckpointError: If it is a safetensors file that is damaged.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(damaged(path, error)) from error
    return None if text is None else json.loads(text)


def complete_spec(spec: BackboneSpec, settings: Mapping[str, Any], path: Path) -> BackboneSpec:
    """Fill in the image size and the number of blocks that a Sensitune checkpoint carries.

    Args:
        spec: What was asked for; what it sets wins.
        settings: From `saved_settings`.
        path: The checkpoint, for an error.

    Returns:
        The completed spec.

    Raises:
        CheckpointError: If the checkpoint was saved from another architecture.
    """
    saved = BackboneSpec.from_dict(settings["spec"])
    if saved.name.partition(".")[0] != spec.name.partition(".")[0]:
        raise CheckpointError(f"`checkpoint` {path} was saved from {saved.name}, not from {spec.name}.")
    image_size = spec.image_size or settings["preprocessing"].get("image_size") or saved.image_size
    return replace(spec, image_size=image_size, num_blocks=spec.num_blocks or saved.num_blocks)
