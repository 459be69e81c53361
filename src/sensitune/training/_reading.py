"""What a training goes through in every epoch: the images, or, where only the head trains, their features."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn

from sensitune.data import ImageData, ImageTransform, PreparedImages
from sensitune.errors import ArgumentError
from sensitune.training._device import autocast, resolve_dtype
from sensitune.training._features import FrozenFeatures, features_of, head_that_trains_alone, loaded
from sensitune.training._loss import logits_of
from sensitune.training._modes import evaluation_mode
from sensitune.training._recipe import Recipe


@dataclass(frozen=True)
class Reading:
    """What is read, and by what.

    Attributes:
        module: What the batches go through: the whole model, or its head.
        splits: Split -> images, or features.
        head: The head, if it is all that trains.
        seconds: Wall-clock seconds that the features of the training split took.
    """

    module: nn.Module
    splits: Mapping[str, PreparedImages | FrozenFeatures]
    head: nn.Module | None = None
    seconds: float = 0.0

    @property
    def of_features(self) -> bool:
        """Whether the features were computed once and for all."""
        return self.module is self.head


def open_reading(
    model: nn.Module,
    images: Mapping[str, PreparedImages],
    recipe: Recipe,
    *,
    device: torch.device,
    num_workers: int,
    cache_bytes: int,
) -> Reading:
    """The images as they are, or their features if that saves every epoch the backbone.

    That is so where the head alone trains, on the same images in every epoch: without augmentation and mixup, and if
    the features fit into the memory that pixels may take.

    Args:
        model: As for `train`.
        images: From `prepare_splits`.
        recipe: As for `train`.
        device: Where the model runs.
        num_workers: As for `train`.
        cache_bytes: As for `train`.

    Returns:
        The reading.
    """
    alone = head_that_trains_alone(model, images["train"][0]["pixel_values"][None])
    if alone is None:
        return Reading(model, images)
    head, feature_bytes = alone
    fits = max(map(len, images.values())) * feature_bytes <= cache_bytes
    if images["train"].transform.augment or recipe.mixup or not fits:
        return Reading(model, images, head)
    model.to(device)
    splits, seconds = {}, {}
    for split, prepared in images.items():
        started = time.perf_counter()
        batches = loaded(prepared, batch_size=recipe.batch_size, num_workers=num_workers)
        arithmetic = autocast(device, resolve_dtype(recipe.precision, device))
        splits[split] = features_of(model, head, batches, arithmetic=arithmetic)
        seconds[split] = time.perf_counter() - started
    return Reading(head, splits, head, seconds["train"])


def prepare_splits(data: ImageData, transform: ImageTransform, cache_bytes: int) -> dict[str, PreparedImages]:
    """The splits under the transform, whose augmentation is for the training split alone.

    Args:
        data: As for `train`.
        transform: As for `train`.
        cache_bytes: As for `train`.

    Returns:
        Split -> images.
    """
    images = {"train": PreparedImages(data.dataset["train"], transform, cache_bytes=cache_bytes)}
    for split in ("validation", "test"):
        if split in data.dataset:
            # The test split is read twice at most: not worth the memory.
            kept = cache_bytes if split == "validation" else 0
            images[split] = PreparedImages(data.dataset[split], transform.for_evaluation(), cache_bytes=kept)
    return images


def check_model(model: nn.Module, images: PreparedImages, num_classes: int) -> None:
    """Make sure that a model can be trained on some images.

    Args:
        model: As for `train`.
        images: The training split.
        num_classes: Classes of the data.

    Raises:
        ArgumentError: If nothing requires a gradient, the model's outputs are not the data's classes, or the adapter
            has a name of its own.
    """
    if isinstance(model, PeftModel) and model.active_adapters != ["default"]:
        raise ArgumentError(
            f"`model` must have one active adapter, called 'default', as an adapter folder holds one. Got "
            f"{', '.join(model.active_adapters)}."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError("`model` must have parameters that require a gradient. Got none: tune it first.")
    image = images[0]["pixel_values"][None].to(next(model.parameters()).device)
    with torch.no_grad(), evaluation_mode(model):
        outputs = logits_of(model, image).shape[-1]
    if outputs != num_classes:
        raise ArgumentError(
            f"`model` must have one output for each of the data's {num_classes} classes. Got {outputs}. "
            f"Build it with `num_classes={num_classes}`."
        )
