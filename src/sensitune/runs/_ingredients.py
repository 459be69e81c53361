"""What a run is made from: its images, its transform, its backbone and the outline of that, each made once."""

from __future__ import annotations

import hashlib
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from sensitune._processes import Processes
from sensitune.backbones import Backbone, BackboneSpec, check_backbone, load_backbone, rebuild_backbone
from sensitune.data import DataSettings, ImageData, ImageTransform, batches, load_data
from sensitune.errors import ProcessError
from sensitune.sites import ModelOutline, find_head, outline_model
from sensitune.training import HeadStart, check_enough_images, fit_head, resolve_device

if TYPE_CHECKING:
    from sensitune.runs._config import RunConfig


class Ingredients:
    """Images, transform and backbone, made when they are first asked for and kept for whoever asks again.

    Args:
        backbone: The model.
        data: The images.
        seed: Of the model's new head.
        head_start: Whether that head stays random or is fitted to the images.
        device: Where it is fitted.
    """

    def __init__(
        self,
        backbone: BackboneSpec,
        data: DataSettings,
        seed: int,
        *,
        head_start: HeadStart = "random",
        device: str = "auto",
    ) -> None:
        self.made_of = (backbone, data, seed, head_start)
        self._spec = backbone
        self._settings = data
        self._seed = seed
        self._head_start = head_start
        self._device = device
        self._outlines: dict[bool, ModelOutline] = {}

    @classmethod
    def of(cls, config: RunConfig) -> Ingredients:
        """What a run with some settings is made from."""
        device, head_start = config.compute.device, config.recipe.head_start
        return cls(config.backbone, config.data, config.seed, head_start=head_start, device=device)

    def suit(self, config: RunConfig) -> bool:
        """Whether a run with some settings is made from these."""
        return self.made_of == (config.backbone, config.data, config.seed, config.recipe.head_start)

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
        """The backbone and its new head as every stage starts from them: to be looked at, never changed or moved."""
        backbone = self._loaded
        if self._head_start == "probe":
            # Fitted once: what is solved on another machine may differ in its last digits.
            fitted = Processes.found().first(self._fit_head)
            backbone.model.load_state_dict(fitted, strict=False)
        return backbone

    def without_test(self) -> Ingredients:
        """The same, of runs that leave the test split alone; what is loaded or fitted is shared."""
        if not self._settings.test:
            return self
        _ = self.all_data, self.backbone
        other = copy(self)
        other.__dict__.pop("data", None)
        other._settings = replace(self._settings, test=False)
        other.made_of = (self._spec, other._settings, self._seed, self._head_start)
        return other

    def _fit_head(self) -> dict[str, Tensor]:
        """Fit the head in place; what the fit has changed, by name."""
        splits, model = self.data.dataset, self._loaded.model
        parts = [
            batches(splits[split], self.transform, batch_size=64)
            for split in ("train", "validation")
            if split in splits
        ]
        fit_head(model.to(resolve_device(self._device)), *parts)
        model.to("cpu")
        head = tuple(f"{name}." for name in find_head(model))
        return {name: value for name, value in model.state_dict().items() if name.startswith(head)}

    @cached_property
    def _loaded(self) -> Backbone:
        return load_backbone(self._spec, num_classes=self.data.num_classes, seed=self._seed)

    def outline(self, *, split_fused: bool = True) -> ModelOutline:
        """How the method sees the backbone, with q, k and v of a fused projection apart or as the one matrix it is."""
        if split_fused not in self._outlines:
            self._outlines[split_fused] = outline_model(self._loaded.model, split_fused=split_fused)
        return self._outlines[split_fused]

    def check(self, *, drop_path: float) -> None:
        """Make sure that images and backbone are there and go together.

        Args:
            drop_path: The highest rate that the backbone will be built with.

        Raises:
            SensituneError: If they do not, in one sentence.
        """
        backbone, _ = self._loaded, self.transform
        check_backbone(backbone, num_classes=self.data.num_classes, drop_path=drop_path)

    def check_alike(self) -> None:
        """Make sure that processes that work together have the same weights and images, and no more than images.

        Raises:
            ProcessError: If one has others.
            DataError: If there are fewer training images than processes.
        """
        processes = Processes.found()
        if processes.count == 1:
            return
        check_enough_images(len(self.data.dataset["train"]))
        mine = {"weights": self._loaded.weights_hash} | {
            f"images of the {split} split": hashlib.sha256(str(list(images["label"][:])).encode()).hexdigest()
            for split, images in self.data.dataset.items()
        }
        found = processes.gather(mine)
        for rank, theirs in enumerate(found):
            if different := [what for what, value in found[0].items() if theirs.get(what) != value]:
                raise ProcessError(
                    f"Process {rank} has other {different[0]} than process 0. Give every process the same files."
                )

    def fresh_backbone(self, *, drop_path: float = 0.0) -> Backbone:
        """A backbone for a stage of its own, to be moved, tuned and trained; its weights come from memory."""
        return rebuild_backbone(self.backbone, num_classes=self.data.num_classes, drop_path=drop_path)

    @cached_property
    def transform(self) -> ImageTransform:
        """The recorded preprocessing: ImageNet's statistics unless the model's own are asked for."""
        backbone, settings = self._loaded, self._settings
        transform = ImageTransform(
            image_size=backbone.image_size,
            interpolation=backbone.interpolation,
            resize=settings.resize,
            augment=settings.augment,
        )
        if settings.normalize == "model":
            return replace(transform, mean=backbone.mean, std=backbone.std)
        return transform
