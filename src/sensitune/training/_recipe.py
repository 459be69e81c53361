"""How a tuned model is trained: every number of the optimisation in one frozen value. Free of torch on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from sensitune._schema import NonNegativeInt, Positive, PositiveInt, Share, check, to_plain
from sensitune.errors import ArgumentError

Precision = Literal["auto", "float32", "bfloat16"]
HeadStart = Literal["random", "probe"]
# AdamW moves every value by about the rate in a step: with more than this nothing that was learnt is left.
LearningRate = Annotated[float, Gt(0), Le(10)]
OtherRate = Annotated[float, Ge(0), Le(10)]
Multiple = Annotated[float, Ge(0), Le(1000)]


@dataclass(frozen=True)
class Recipe:
    """The optimisation of one training run. The defaults are the design's VTAB-1k recipe (SPT, section 4.1).

    Raises:
        ArgumentError: If a setting has the wrong type or is out of range.
    """

    learning_rate: LearningRate = 1e-3
    """Peak learning rate of AdamW, reached at the end of the warm-up."""
    in_place_rate: Multiple = 1.0
    """Learning rate of pretrained values tuned in place (sparse values, whole vectors, tokens) as a multiple of
    `learning_rate`, which modules and the head, being new, always take whole. The paper's is 1."""
    weight_decay: OtherRate = 1e-4
    """Decoupled weight decay; never on 1-D tensors, tokens or sparse values."""
    batch_size: PositiveInt = 64
    """Images per step."""
    epochs: NonNegativeInt = 100
    """Passes over the training split; 0 leaves the head as ``head_start: probe`` has fitted it, a linear probe."""
    warmup_share: Share = 0.1
    """Share of all steps over which the learning rate rises linearly; the published 10 of 100 epochs."""
    warmup_learning_rate: OtherRate = 1e-6
    """Learning rate of the first step."""
    final_learning_rate: OtherRate = 1e-5
    """Learning rate that the cosine falls to."""
    dropout: Share = 0.1
    """Dropout on what the modules read, while training."""
    drop_path: Share = 0.1
    """Probability of skipping a residual branch of the backbone while training (stochastic depth); off where the head
    alone trains."""
    label_smoothing: Share = 0.0
    """Share of the target spread over all classes."""
    mixup: Multiple = 0.0
    """Alpha of mixup's Beta distribution; 0 switches it off."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass: auto is bfloat16 on CUDA hardware that has it, float32 elsewhere."""
    clip_grad_norm: Positive | None = None
    """Largest norm of the gradient; None leaves it alone."""
    validate: Literal["epochs", "end"] = "epochs"
    """When the validation split is looked at: after every epoch, to choose one, or at the end alone, to save time."""
    head_start: HeadStart = "random"
    """Where the head starts: at random, or fitted to the features of the frozen backbone (linear probing, then
    fine-tuning: Kumar et al., ICLR 2022), for the scores as for the training."""

    def __post_init__(self) -> None:
        check(self)
        if self.epochs == 0 and self.head_start == "random":
            raise ArgumentError(
                "`epochs` must be at least 1 where the head starts at random. Got 0: nothing would be learnt."
            )

    def to_dict(self) -> dict[str, Any]:
        """Every setting, ready for JSON or YAML."""
        return to_plain(self)
