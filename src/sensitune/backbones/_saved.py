"""A merged model as one safetensors file that says how to build it again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sensitune._files import atomic_write
from sensitune._schema import ImageSide, NonEmptyText, Positive, parse_json, read, show_name, to_plain
from sensitune._tensor_file import CHECKSUM_KEY, checksum, document_checksum, sort_metadata
from sensitune.backbones._hash import weights_hash
from sensitune.backbones._reading import damaged
from sensitune.backbones._types import BackboneSpec
from sensitune.errors import ArgumentError, CheckpointError, ModelError

_KEY = "sensitune_checkpoint"


@dataclass(frozen=True)
class Preprocessing:
    """How images became tensors; what is None is the model's own.

    Attributes:
        image_size: Side of the square input in pixels.
        mean: Per-channel mean of pixels in [0, 1].
        std: Per-channel standard deviation, likewise.
        interpolation: How images were resized, one of Pillow's filters by name.
        resize: Side that they were resized to before they were cropped to `image_size`.
        augment: Whether they were cropped and flipped at random.
    """

    image_size: ImageSide | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    interpolation: NonEmptyText | None = None
    resize: ImageSide | None = None
    augment: bool = False


@dataclass(frozen=True)
class CheckpointMetadata:
    """What a merged checkpoint says about itself.

    Attributes:
        spec: As given to `save_checkpoint`.
        class_names: Likewise.
        preprocessing: Likewise.
        metadata: Likewise.
        weights_hash: `weights_hash` of the model.
        versions: Package -> its version when the file was written.
        checksums: Tensor -> its checksum.
    """

    spec: BackboneSpec
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    metadata: Mapping[str, Any]
    weights_hash: str
    versions: Mapping[str, str]
    checksums: Mapping[str, str]


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
        preprocessing: How images became tensors: ``image_size``, ``mean``, ``std``, ``interpolation``, ``resize`` and
            ``augment``, any of them, as `sensitune.data.ImageTransform` has them; the model's own for the rest.
        metadata: Anything else worth keeping that goes to JSON.

    Raises:
        ArgumentError: If the path has another suffix, or a value of `preprocessing` makes no sense.
        ModelError: If the model still has tuner layers.
    """
    if Path(path).suffix != ".safetensors":
        raise ArgumentError(f"`path` of a merged checkpoint must end in .safetensors. Got {os.fspath(path)!r}.")
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ModelError("The model still has tuner layers. Call `merge_and_unload()` and save what it returns.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    about = CheckpointMetadata(
        spec=spec,
        class_names=tuple(class_names),
        preprocessing=read(Preprocessing, preprocessing or {}, where="preprocessing", error=ArgumentError),
        metadata=dict(metadata or {}),
        weights_hash=weights_hash(model),
        versions={name: version(name) for name in ("sensitune", "timm", "torch")},
        checksums={name: checksum(tensor) for name, tensor in tensors.items()},
    )
    document = json.dumps(to_plain(about))
    header = {"format": "pt", _KEY: document, CHECKSUM_KEY: document_checksum(document)}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=header)
        sort_metadata(temporary)


def saved_metadata(path: Path) -> CheckpointMetadata | None:
    """What `save_checkpoint` wrote beside the weights.

    Args:
        path: Any checkpoint.

    Returns:
        It; None for a file of another origin.

    Raises:
        CheckpointError: If it is a safetensors file that is damaged.
    """
    if path.suffix.lower() != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        text = header.get(_KEY)
        values = None if text is None else parse_json(text)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(damaged(path, error)) from error
    if text is None and CHECKSUM_KEY not in header:
        return None
    if text is None:
        raise CheckpointError(_changed(path, "its header"))
    about = read(CheckpointMetadata, values, source=path, error=CheckpointError)
    if header.get(CHECKSUM_KEY) != document_checksum(text):
        raise CheckpointError(_changed(path, "its header"))
    return about


def check_tensors(tensors: Mapping[str, Tensor], about: CheckpointMetadata, path: Path) -> None:
    """Make sure that a merged checkpoint holds what was written.

    Args:
        tensors: Its tensors.
        about: From `saved_metadata`.
        path: The checkpoint, for an error.

    Raises:
        CheckpointError: If one is missing, too many or changed.
    """
    for name in sorted(tensors.keys() | about.checksums.keys()):
        if name not in tensors or about.checksums.get(name) != checksum(tensors[name]):
            raise CheckpointError(_changed(path, f"the tensor `{show_name(name)}`"))


def _changed(path: Path, what: str) -> str:
    return (
        f"`checkpoint` {path} is damaged: {what} is not what was written (by its checksum). Merge again, or restore it."
    )


def complete_spec(spec: BackboneSpec, about: CheckpointMetadata, path: Path) -> BackboneSpec:
    """Fill in the image size and the number of blocks that a Sensitune checkpoint carries.

    Args:
        spec: What was asked for; what it sets wins.
        about: From `saved_metadata`.
        path: The checkpoint, for an error.

    Returns:
        The completed spec.

    Raises:
        CheckpointError: If the checkpoint was saved from another architecture.
    """
    saved = about.spec
    if saved.name.partition(".")[0] != spec.name.partition(".")[0]:
        raise CheckpointError(f"`checkpoint` {path} was saved from {saved.name}, not from {spec.name}.")
    image_size = spec.image_size or about.preprocessing.image_size or saved.image_size
    return replace(spec, image_size=image_size, num_blocks=spec.num_blocks or saved.num_blocks)
