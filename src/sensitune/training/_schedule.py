"""The learning rate of a step: a line up, then half a cosine down."""

from __future__ import annotations

import math

from sensitune.training._recipe import Recipe


def learning_rate_at(step: int, *, steps_per_epoch: int, recipe: Recipe) -> float:
    """Learning rate of one optimizer step.

    With T steps in all, W of them warm-up, and learning rates a (warm-up), b (peak) and c (final):
    ``a + (b - a) t / W`` for t < W, then ``c + (b - c) (1 + cos(pi (t - W) / (T - W))) / 2``.

    Args:
        step: Index t of the step, from 0; at T the rate is the final one.
        steps_per_epoch: Optimizer steps of one pass over the training split.
        recipe: Epochs, warm-up and the three rates.

    Returns:
        The learning rate, in the same unit as the recipe's.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_share * total)
    if step < warmup:
        return recipe.warmup_learning_rate + (recipe.learning_rate - recipe.warmup_learning_rate) * step / warmup
    # A warm-up just short of the end may round to all steps; then the peak is all there is left.
    phase = (step - warmup) / max(1, total - warmup)
    cosine = (1 + math.cos(math.pi * min(phase, 1.0))) / 2
    return recipe.final_learning_rate + (recipe.learning_rate - recipe.final_learning_rate) * cosine
