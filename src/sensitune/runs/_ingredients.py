"""A run's settings -> its model, images and transform."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sensitune.allocation import Allocation
from sensitune.backbones import Backbone, BackboneSpec, load_backbone
from sensitune.data import ImageData, ImageTransform, load_data
from sensitune.runs._config import RunConfig
from sensitune.training import AdapterManifest, AdapterOrigin


def backbone_spec(config: RunConfig) -> BackboneSpec:
    """What a run's settings say about its model."""
    return BackboneSpec(
        name=config.model,
        checkpoint=config.checkpoint,
        pretrained=config.pretrained,
        image_size=config.image_size,
        num_blocks=config.num_blocks,
    )


def build_backbone(config: RunConfig, num_classes: int, *, drop_path: float = 0.0) -> Backbone:
    """The run's model with its new head; the same one whenever it is asked for."""
    return load_backbone(backbone_spec(config), num_classes=num_classes, drop_path=drop_path, seed=config.seed)


def build_data(config: RunConfig) -> ImageData:
    """The run's images; without its test split if the run is not to see it."""
    data = load_data(
        config.data,
        root=config.root,
        train_on_validation=config.train_on_validation,
        seed=config.split_seed,
        max_train=config.max_train,
        shots=config.shots,
        skip_unreadable=config.skip_unreadable,
    )
    splits = dict(data.dataset)
    test = splits.pop("test", None)
    if test is None or (config.test and len(test) <= (config.max_test or len(test))):
        return data
    if config.test:
        splits["test"] = test.shuffle(seed=config.split_seed).select(range(config.max_test or 0))
    return data.with_splits(splits)


def build_transform(config: RunConfig, backbone: Backbone) -> ImageTransform:
    """The recorded preprocessing: ImageNet's statistics unless the model's own are asked for."""
    transform = ImageTransform(
        image_size=backbone.image_size,
        interpolation=backbone.interpolation,
        resize=config.resize,
        augment=config.augment,
    )
    return replace(transform, mean=backbone.mean, std=backbone.std) if config.normalize == "model" else transform


def build_manifest(config: RunConfig, backbone: Backbone, data: ImageData, allocation: Allocation) -> AdapterManifest:
    """What the adapter folder says about itself, and nothing about this machine."""
    spec = backbone.spec
    if spec.checkpoint is not None:
        spec = replace(spec, checkpoint=Path(spec.checkpoint).name)
    origin = AdapterOrigin.of(
        data,
        method=config.method,
        seed=config.seed,
        trainable_params=allocation.trainable_params,
        head_params=allocation.head_params,
    )
    return AdapterManifest(spec, backbone.weights_hash, data.class_names, build_transform(config, backbone), origin)
