"""The tuned model and its images -> trained adapter folders, on `transformers.Trainer`.

A `Recipe` holds every number of the optimisation; its defaults are the VTAB-1k recipe: AdamW, a linear warm-up over
W steps and a cosine over the rest,

    lr(t) = a + (b - a) t / W                                    t < W
    lr(t) = c + (b - c) (1 + cos(pi (t - W) / (T - W))) / 2       t >= W

with a = 1e-6, b = 1e-3, c = 1e-5. No weight decay on 1-D tensors, tokens or sparse values. Images are
[batch, 3, height, width] float32, labels [batch] int64, logits [batch, classes].

Two accuracies are reported, that of the last epoch and that of the epoch the validation split chose; never the best
test epoch. An interrupted run goes on from its last epoch with the same result.

Paper: He et al., *Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning*, ICCV 2023, section 4.1.

Example:
    >>> recipe = Recipe(epochs=10)
    >>> result = train(tuned, data, recipe, "runs/cells", transform=transform)  # doctest: +SKIP
    >>> result.test_accuracy_chosen  # doctest: +SKIP
    0.71
"""

from __future__ import annotations

from sensitune.training._answers import Answers
from sensitune.training._device import check_precision, resolve_device
from sensitune.training._evaluate import Evaluation, evaluate, predict_probabilities
from sensitune.training._groups import parameter_groups
from sensitune.training._manifest import AdapterManifest, AdapterOrigin, load_tuned
from sensitune.training._probe import fit_head
from sensitune.training._recipe import HeadStart, Recipe
from sensitune.training._result import (
    TrainingFolder,
    TrainingProgress,
    TrainingResult,
    read_metrics,
    read_result,
)
from sensitune.training._run_card import write_card
from sensitune.training._sharding import check_launcher
from sensitune.training._shares import check_enough_images
from sensitune.training._train import train
from sensitune.training._weights import load_weights

__all__ = [
    "AdapterManifest",
    "AdapterOrigin",
    "Answers",
    "Evaluation",
    "HeadStart",
    "Recipe",
    "TrainingFolder",
    "TrainingProgress",
    "TrainingResult",
    "check_enough_images",
    "check_launcher",
    "check_precision",
    "evaluate",
    "fit_head",
    "load_tuned",
    "load_weights",
    "parameter_groups",
    "predict_probabilities",
    "read_metrics",
    "read_result",
    "resolve_device",
    "train",
    "write_card",
]
