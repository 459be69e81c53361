"""How a tuned model is trained: every number of the optimisation in one frozen value. Free of torch on purpose."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sensitune.errors import ArgumentError

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """The optimisation of one training run. The defaults are the design's VTAB-1k recipe (SPT, section 4.1)."""

    learning_rate: float = 1e-3
    """Peak learning rate of AdamW, reached at the end of the warm-up."""
    in_place_rate: float = 1.0
    """Learning rate of pretrained values tuned in place (sparse values, whole vectors, tokens) as a multiple of
    `learning_rate`, which modules and the head, being new, always take whole. The paper's is 1."""
    weight_decay: float = 1e-4
    """Decoupled weight decay; never on 1-D tensors, tokens or sparse values."""
    batch_size: int = 64
    """Images per step."""
    epochs: int = 100
    """Passes over the training split."""
    warmup_share: float = 0.1
    """Share of all steps over which the learning rate rises linearly; the published 10 of 100 epochs."""
    warmup_learning_rate: float = 1e-6
    """Learning rate of the first step."""
    final_learning_rate: float = 1e-5
    """Learning rate that the cosine falls to."""
    dropout: float = 0.1
    """Dropout on what the modules read, while training."""
    drop_path: float = 0.1
    """Probability of skipping a residual branch of the backbone while training (stochastic depth)."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    mixup: float = 0.0
    """Alpha of mixup's Beta distribution; 0 switches it off."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass: auto is bfloat16 on CUDA hardware that has it, float32 elsewhere."""
    clip_grad_norm: float | None = None
    """Largest norm of the gradient; None leaves it alone."""
    validate: Literal["epochs", "end"] = "epochs"
    """When the validation split is looked at: after every epoch, to choose one, or at the end alone, to save time."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            _check_range(name, getattr(self, name), low, high)
        if self.precision not in {"auto", "float32", "bfloat16"}:
            raise ArgumentError(f"`precision` must be 'auto', 'float32' or 'bfloat16'. Got {self.precision!r}.")
        if self.validate not in {"epochs", "end"}:
            raise ArgumentError(f"`validate` must be 'epochs' or 'end'. Got {self.validate!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Every setting, ready for JSON or YAML."""
        return asdict(self)


_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0.0, math.inf),
    "in_place_rate": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "batch_size": (1, math.inf),
    "epochs": (1, math.inf),
    "warmup_share": (0.0, 0.99),
    "warmup_learning_rate": (0.0, math.inf),
    "final_learning_rate": (0.0, math.inf),
    "dropout": (0.0, 0.99),
    "drop_path": (0.0, 0.99),
    "label_smoothing": (0.0, 0.99),
    "mixup": (0.0, math.inf),
    "clip_grad_norm": (1e-12, math.inf),
}


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is None and name == "clip_grad_norm":
        return
    if not isinstance(value, (int, float)) or not (low <= value <= high) or value == math.inf:
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise ArgumentError(f"`{name}` must be a number of at least {low:g}{upper}. Got {value!r}.")
