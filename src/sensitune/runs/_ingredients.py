"""What a run is made from: its images, its transform and its backbone, each made once."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from sensitune.backbones import Backbone, BackboneSpec, load_backbone, rebuild_backbone
from sensitune.data import DataSettings, ImageData, ImageTransform, load_data
from sensitune.runs._config import RunConfig


class Ingredients:
    """Images, transform and backbone of a run, made when they are first asked for and kept for its other stages.

    Args:
        config: The run's settings.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @cached_property
    def all_data(self) -> ImageData:
        """The run's images, the test split too, whether or not the run is to see it."""
        config = self.config
        return load_data(
            DataSettings(
                config.data,
                root=config.root,
                train_on_validation=config.train_on_validation,
                split_seed=config.split_seed,
                max_train=config.max_train,
                shots=config.shots,
                max_test=config.max_test,
                skip_unreadable=config.skip_unreadable,
            )
        )

    @cached_property
    def data(self) -> ImageData:
        """The images that the run is to see."""
        if self.config.test or "test" not in self.all_data.dataset:
            return self.all_data
        return self.all_data.with_splits(
            {name: split for name, split in self.all_data.dataset.items() if name != "test"}
        )

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone with its new head as it was loaded: to be looked at, never to be changed or moved."""
        config = self.config
        spec = BackboneSpec(
            name=config.model,
            checkpoint=config.checkpoint,
            pretrained=config.pretrained,
            image_size=config.image_size,
            num_blocks=config.num_blocks,
        )
        return load_backbone(spec, num_classes=self.data.num_classes, seed=config.seed)

    def fresh_backbone(self, *, drop_path: float = 0.0) -> Backbone:
        """A backbone for a stage of its own, to be moved, tuned and trained; its weights come from memory."""
        return rebuild_backbone(self.backbone, num_classes=self.data.num_classes, drop_path=drop_path)

    @cached_property
    def transform(self) -> ImageTransform:
        """The recorded preprocessing: ImageNet's statistics unless the model's own are asked for."""
        backbone = self.backbone
        transform = ImageTransform(
            image_size=backbone.image_size,
            interpolation=backbone.interpolation,
            resize=self.config.resize,
            augment=self.config.augment,
        )
        if self.config.normalize == "model":
            return replace(transform, mean=backbone.mean, std=backbone.std)
        return transform
