"""What ``evaluation.json`` holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sensitune._schema import NonNegative, PositiveInt, UnitInterval
from sensitune.training import Evaluation

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
