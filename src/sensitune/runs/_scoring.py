"""What the scores of a run depend on, and the pass that makes them from nothing else."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from sensitune._schema import to_plain
from sensitune.backbones import BackboneSpec
from sensitune.data import DataSettings, batches
from sensitune.runs._ingredients import Ingredients
from sensitune.runs._settings import DeviceName, SensitivitySettings
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.training import HeadStart, resolve_device


@dataclass(frozen=True)
class Scoring:
    """Everything that scores depend on: runs whose scoring is equal have the same scores.

    Attributes:
        backbone: The model.
        data: The images.
        sensitivity: How they are estimated, with what is part of the run's method.
        head_start: Where the head that they are taken with starts.
        seed: Of that head.
    """

    backbone: BackboneSpec
    data: DataSettings
    sensitivity: SensitivitySettings
    head_start: HeadStart
    seed: int

    @property
    def file_name(self) -> str:
        """What the scores' file is called where several runs share theirs: 16 hexadecimal digits stand for it all."""
        plain = to_plain(self)
        if not self.sensitivity.keep_halves:  # named as before there were any
            del plain["sensitivity"]["keep_halves"]
        settings = json.dumps(plain, sort_keys=True)
        return f"{hashlib.sha256(settings.encode()).hexdigest()[:16]}.safetensors"

    def sufficient(self) -> Iterator[Scoring]:
        """Whose scores will do: its own, and those that have gradients or halves beside them."""
        own = self.sensitivity
        for gradients, halves in product(*(sorted({each, True}) for each in (own.keep_gradients, own.keep_halves))):
            yield replace(self, sensitivity=replace(own, keep_gradients=gradients, keep_halves=halves))


def estimate(
    scoring: Scoring,
    ingredients: Ingredients,
    *,
    device: DeviceName,
    progress: Callable[[int, int | None], None],
) -> Sensitivity:
    """Score every parameter on the training split's first batches.

    Args:
        scoring: What the scores depend on.
        ingredients: Its backbone, head included, and images.
        device: Where it is computed.
        progress: Called with the batches done and their number.

    Returns:
        The scores.
    """
    settings = scoring.sensitivity
    model = ingredients.fresh_backbone(drop_path=settings.drop_path).model.to(resolve_device(device))
    images = ingredients.data.dataset["train"]
    num_batches = min(settings.num_batches, math.ceil(len(images) / settings.batch_size))
    first = partial(batches, images, ingredients.transform, batch_size=settings.batch_size, num_batches=num_batches)
    return estimate_sensitivity(
        model,
        first(),
        num_batches=num_batches,
        criterion=settings.criterion,
        sites=ingredients.outline(split_fused=settings.split_fused),
        micro_batch_size=settings.micro_batch_size,
        keep_gradients=settings.keep_gradients,
        keep_halves=settings.keep_halves,
        dropout=settings.drop_path > 0,
        seed=scoring.seed,
        progress=progress,
    )
