"""Every setting of one run, in frozen values; to YAML and back with unknown keys refused."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sensitune._schema import read, read_yaml
from sensitune.errors import ArgumentError
from sensitune.training import Recipe

Method = Literal[
    "spt-lora",
    "spt-adapter",
    "sparse",
    "lora",
    "lora-stored",
    "lora-qv",
    "adapter",
    "random",
    "random-lora",
    "random-sparse",
    "magnitude",
    "neurons",
    "vectors",
    "head",
    "full",
]
Placement = Literal["threshold", "knapsack"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
CriterionName = Literal[
    "squared_gradient",
    "weight_gradient",
    "gradient_over_weight",
    "absolute_gradient_sum",
    "signal_to_noise",
    "normalised_squared_gradient",
    "magnitude",
    "random",
]

DEFAULT_BUDGET = "0.5%"
BUDGETED_METHODS: tuple[Method, ...] = (
    "spt-lora",
    "spt-adapter",
    "sparse",
    "random",
    "random-lora",
    "random-sparse",
    "magnitude",
    "neurons",
)
GRADIENT_START_METHODS: tuple[Method, ...] = ("spt-lora", "lora", "lora-stored", "lora-qv", "random-lora")
SPT_METHODS: tuple[Method, ...] = ("spt-lora", "spt-adapter", "sparse")


@dataclass(frozen=True)
class SensitivitySettings:
    """How the sensitivity is estimated. The defaults are the published ones (SPT, section 4.1)."""

    num_batches: int = 16
    """Batches of the training split, in its order, without augmentation; fewer where the split ends earlier."""
    batch_size: int = 32
    """Images in a batch; the score sums the squared gradients of the batches' mean losses."""
    criterion: CriterionName = "squared_gradient"
    """What makes a parameter sensitive; squared_gradient is the published one."""
    micro_batch_size: int | None = None
    """Images that go through the model at once; lower it where memory is short, the result stays the same."""
    head: Literal["random", "probe"] = "random"
    """Head that the scores are taken with: the new random one, or one that is first fitted to the same images with the
    backbone frozen."""
    drop_path: float = 0.0
    """Stochastic depth while scoring; the published code leaves it at 0.1, which makes the scores random."""


@dataclass(frozen=True)
class RunConfig:
    """One run: which model is tuned on which images, where the parameters go, and how it is trained."""

    model: str
    """Name of a timm model (vit_base_patch16_224.augreg_in21k), one that `sensitune backbones` lists, or
    dinov2_vit_s14_focus."""
    data: str
    """Folder with one folder of images per class (with or without train, val and test above them), demo, the folder of
    a VTAB-1k task or FGVC set, a CSV or JSON list of images, or hf:OWNER/NAME."""
    method: Method = "spt-lora"
    """What is tuned: by sensitivity (spt-lora, spt-adapter, sparse), everywhere (lora, adapter, vectors), everywhere as
    PEFT places it (lora-stored: a fused q, k, v is one matrix), and so on."""
    budget: int | str | None = None
    """Trainable parameters, the head not counted: 400_000, 0.4M, or 0.5% of the backbone (the default)."""
    tau: int | None = None
    """Instead of a budget: how many of the most sensitive parameters are selected."""
    rank: int = 8
    """Rank of the LoRA or Adapter modules."""
    alpha: float = 10.0
    """A matrix gets a module if it holds at least 1/alpha of the module's size in selected parameters."""
    beta: float = 5.0
    """A vector is tuned whole if at least 1/beta of it is selected."""
    placement: Placement = "threshold"
    """How spt-lora spends its budget: by the published thresholds, or where a parameter gains most, each matrix with
    the rank that pays."""
    lora_start: Literal["random", "gradient"] = "random"
    """Where a LoRA's down projection starts: at random, or along the directions in which the loss falls fastest."""
    checkpoint: str | None = None
    """Local weight file for the model (.safetensors, .npz, .pth); None takes the weights of its name."""
    pretrained: bool = True
    """False starts from random weights."""
    image_size: int | None = None
    """Side of the square input in pixels; None is the model's own."""
    num_blocks: int | None = None
    """Keep only the first blocks of a transformer; None keeps all."""
    normalize: Literal["imagenet", "model"] = "imagenet"
    """Mean and standard deviation of the pixels: ImageNet's, or those the model was trained with."""
    resize: int | None = None
    """Resize to this side before cropping to the image size; None resizes straight to it."""
    augment: bool = False
    """Crop and flip the training images at random."""
    root: str | None = None
    """Folder of a benchmark's data, or of the images that a table of paths names; None is the usual place."""
    max_train: int | None = None
    """Use at most so many training images."""
    shots: int | None = None
    """Use exactly so many training images of every class."""
    max_test: int | None = None
    """Use at most so many test images, chosen at random."""
    train_on_validation: bool = False
    """Train on the training and the validation images together, with the settings that were chosen before."""
    test: bool = True
    """False leaves the test split alone: for runs that settings are chosen with."""
    split_seed: int = 0
    """Seed of a split that has to be made, and of the choice of images."""
    skip_unreadable: bool = False
    """Leave damaged images out instead of stopping at the first."""
    sensitivity: SensitivitySettings = field(default_factory=SensitivitySettings)
    """How the sensitivity is estimated."""
    recipe: Recipe = field(default_factory=Recipe)
    """How the model is trained."""
    seed: int = 0
    """Seed of everything random: new head, adapter initialisation, order of the images, dropout."""
    device: DeviceName = "auto"
    """Where it runs: auto takes CUDA, else Apple's MPS, else the CPU."""
    num_workers: int = 0
    """Processes that read images; 0 reads them in this one."""

    def __post_init__(self) -> None:
        if self.budget is not None and self.tau is not None:
            raise ArgumentError(f"Give `budget` or `tau`, not both. Got {self.budget!r} and {self.tau:,}.")
        if self.placement != "threshold" and self.method != "spt-lora":
            raise ArgumentError(f"`placement` belongs to the method spt-lora, not to {self.method}. Leave it out.")
        if self.lora_start != "random" and self.method not in GRADIENT_START_METHODS:
            raise ArgumentError(
                f"`lora_start` {self.lora_start} belongs to the methods {', '.join(GRADIENT_START_METHODS)}, not to "
                f"{self.method}. Leave it, or the preset that sets it, out."
            )
        if self.placement == "knapsack" and self.tau is not None:
            raise ArgumentError(f"The placement knapsack spends a `budget`; it has no `tau`. Got {self.tau:,}.")
        given = "budget" if self.budget is not None else "tau" if self.tau is not None else None
        if given and self.method not in BUDGETED_METHODS:
            raise ArgumentError(
                f"`{given}` has no meaning for the method {self.method!r}: its cost follows from the model and `rank`."
            )
        if self.max_train is not None and self.shots is not None:
            raise ArgumentError(f"Give `max_train` or `shots`, not both. Got {self.max_train} and {self.shots}.")
        for name in ("max_train", "max_test", "shots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"`{name}` must be at least 1, or None for all images. Got {value}.")
        if not 0 <= self.seed < 2**32:
            raise ArgumentError(f"`seed` must be a whole number from 0 to {2**32 - 1}. Got {self.seed}.")

    @property
    def needs_gradients(self) -> bool:
        """Whether the directions of the gradients are needed besides the scores."""
        return self.placement == "knapsack" or self.lora_start == "gradient"

    def to_dict(self) -> dict[str, Any]:
        """Every setting, ready for YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Read what `to_dict` wrote, or a person.

        Args:
            values: Setting -> value; what is left out takes its default.

        Returns:
            The configuration.

        Raises:
            ConfigError: If a key is unknown (the closest known one is named), missing, or of the wrong type.
        """
        return read(cls, values)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> RunConfig:
        """Read a configuration file, or the ``run.yaml`` of a run folder.

        Args:
            path: The file.

        Returns:
            The configuration.

        Raises:
            ConfigError: If the file is missing, is no YAML, or `from_dict` refuses it.
        """
        return cls.from_dict(read_settings(path))


RECORDED_KEY = "recorded"


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a configuration file, without what a run folder records beside them."""
    return {key: value for key, value in read_yaml(path).items() if key != RECORDED_KEY}
