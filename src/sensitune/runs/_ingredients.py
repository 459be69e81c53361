"""What a run is made from: its images, its transform, its backbone and the outline of that, each made once."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from sensitune.backbones import Backbone, BackboneSpec, load_backbone, rebuild_backbone
from sensitune.data import DataSettings, ImageData, ImageTransform, load_data
from sensitune.sites import ModelOutline, outline_model


class Ingredients:
    """Images, transform and backbone, made when they are first asked for and kept for whoever asks again.

    Args:
        backbone: The model.
        data: The images.
        seed: Of the model's new head.
    """

    def __init__(self, backbone: BackboneSpec, data: DataSettings, seed: int) -> None:
        self.made_of = (backbone, data, seed)
        self._spec = backbone
        self._settings = data
        self._seed = seed
        self._outlines: dict[bool, ModelOutline] = {}

    @cached_property
    def all_data(self) -> ImageData:
        """The images, the test split too, whether or not it is to be seen."""
        return load_data(replace(self._settings, test=True))

    @cached_property
    def data(self) -> ImageData:
        """The images that are to be seen."""
        splits = dict(self.all_data.dataset)
        if self._settings.test or "test" not in splits:
            return self.all_data
        del splits["test"]
        return self.all_data.with_splits(splits)

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone with its new head as it was loaded: to be looked at, never to be changed or moved."""
        return load_backbone(self._spec, num_classes=self.data.num_classes, seed=self._seed)

    def outline(self, *, split_fused: bool = True) -> ModelOutline:
        """How the method sees the backbone, with q, k and v of a fused projection apart or as the one matrix it is."""
        if split_fused not in self._outlines:
            self._outlines[split_fused] = outline_model(self.backbone.model, split_fused=split_fused)
        return self._outlines[split_fused]

    def fresh_backbone(self, *, drop_path: float = 0.0) -> Backbone:
        """A backbone for a stage of its own, to be moved, tuned and trained; its weights come from memory."""
        return rebuild_backbone(self.backbone, num_classes=self.data.num_classes, drop_path=drop_path)

    @cached_property
    def transform(self) -> ImageTransform:
        """The recorded preprocessing: ImageNet's statistics unless the model's own are asked for."""
        backbone, settings = self.backbone, self._settings
        transform = ImageTransform(
            image_size=backbone.image_size,
            interpolation=backbone.interpolation,
            resize=settings.resize,
            augment=settings.augment,
        )
        if settings.normalize == "model":
            return replace(transform, mean=backbone.mean, std=backbone.std)
        return transform
