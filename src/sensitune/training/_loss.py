"""From a batch to its loss: cross-entropy with label smoothing, optionally over mixed pairs of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensitune.training._recipe import Recipe


def logits_of(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Logits [batch, classes], float32, of a model that returns them alone (timm) or as ``.logits`` (transformers)."""
    output = model(pixel_values)
    logits: Tensor = getattr(output, "logits", output)
    return logits.float()


def training_loss(model: nn.Module, pixel_values: Tensor, labels: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Mean loss of a batch under the recipe.

    Mixup (Zhang et al., *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, eq. 1) draws one lambda for the batch
    and pairs every image with one of the same batch.

    Args:
        model: The model in training mode.
        pixel_values: Images [batch, 3, height, width].
        labels: Class ids [batch].
        recipe: Label smoothing and mixup.

    Returns:
        The scalar loss and the logits [batch, classes].
    """
    if recipe.mixup == 0:
        logits = logits_of(model, pixel_values)
        return _cross_entropy(logits, labels, recipe), logits
    share = float(torch.distributions.Beta(recipe.mixup, recipe.mixup).sample())
    order = torch.randperm(len(labels)).to(labels.device)
    logits = logits_of(model, share * pixel_values + (1 - share) * pixel_values[order])
    first, second = _cross_entropy(logits, labels, recipe), _cross_entropy(logits, labels[order], recipe)
    return share * first + (1 - share) * second, logits


def _cross_entropy(logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    return functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
