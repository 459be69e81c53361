"""A later evaluation: what ``evaluation.json`` holds, and what the model card says of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sensitune._schema import NonNegative, PositiveInt, UnitInterval
from sensitune.training import Evaluation, Recipe, read_result, write_card

Weights = Literal["last", "chosen"]


@dataclass(frozen=True)
class RecordedEvaluation:
    """What the saved adapter of a run reached on a split.

    Attributes:
        split: The split.
        weights: Those of the last epoch, or of the one the validation split chose.
        accuracy: Share of images whose most probable class is their label, in [0, 1].
        loss: Mean cross-entropy.
        num_images: Number of images.
    """

    split: str
    weights: Weights
    accuracy: UnitInterval
    loss: NonNegative
    num_images: PositiveInt

    @classmethod
    def of(cls, found: Evaluation, *, split: str, weights: Weights) -> RecordedEvaluation:
        """What is recorded of an evaluation.

        Args:
            found: The evaluation.
            split: As in the class.
            weights: As in the class.

        Returns:
            The record.
        """
        return cls(split, weights, found.accuracy, found.loss, found.num_images)


def show_on_card(root: Path, recipe: Recipe, test_accuracy: float, weights: Weights) -> None:
    """Put a test accuracy onto the card of an adapter that was trained without one.

    Args:
        root: The run's folder.
        recipe: How it was trained.
        test_accuracy: In [0, 1].
        weights: Whose it is.
    """
    result = read_result(root)
    if result is None:
        return  # the training is not finished, and will write the card
    name = "test_accuracy_last" if weights == "last" else "test_accuracy_chosen"
    known = replace(result, **{name: test_accuracy})  # type: ignore[arg-type]
    write_card(root, weights, recipe=recipe, result=known)
