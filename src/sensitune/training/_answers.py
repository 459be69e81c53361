"""What a trained model said of every test image, on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sensitune._schema import PositiveInt
from sensitune._tensor_file import load_tensor_file, save_tensor_file
from sensitune.errors import AdapterFileError
from sensitune.training._evaluate import Evaluation

_KIND: Final = "answers"
_TYPES: Final = {"labels": torch.int32, "predictions": torch.int32, "confidences": torch.float32}


@dataclass(frozen=True)
class _Content:
    """What the file holds beside the tensors."""

    num_classes: PositiveInt


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's answers to the images of a split, in its order.

    Attributes:
        labels: The right class of every image [images], int32.
        predictions: The most probable one, int32.
        confidences: Its probability, float32.
        num_classes: Number of classes.
    """

    labels: Tensor
    predictions: Tensor
    confidences: Tensor
    num_classes: int

    @classmethod
    def of(cls, found: Evaluation, *, num_classes: int) -> Answers:
        """The answers of an evaluation.

        Args:
            found: The evaluation.
            num_classes: Number of classes.

        Returns:
            The answers.
        """
        tensors = {name: getattr(found, name).to(dtype) for name, dtype in _TYPES.items()}
        return cls(**tensors, num_classes=num_classes)

    def confident_mistakes(self, count: int) -> list[int]:
        """Images that were taken for another class with the highest confidence.

        Args:
            count: How many, at most.

        Returns:
            Their places in the split, the most confident first, ties in the split's order.
        """
        wrong = (self.labels != self.predictions).nonzero().flatten()
        order = self.confidences[wrong].argsort(descending=True, stable=True)[:count]
        return [int(index) for index in wrong[order]]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, twelve bytes an image.

        Args:
            path: The file.
        """
        tensors = {name: getattr(self, name) for name in _TYPES}
        save_tensor_file(path, tensors, kind=_KIND, content=_Content(self.num_classes))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Answers:
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The answers.

        Raises:
            AdapterFileError: If it is missing, damaged, or another kind of file.
        """
        tensors, content = load_tensor_file(path, kind=_KIND, content=_Content, rule=_complaint)
        if set(tensors) != set(_TYPES) or len({len(each) for each in tensors.values()}) != 1:
            raise AdapterFileError(
                f"`{path}` must hold {', '.join(_TYPES)}, one of each an image. `sensitune evaluate` makes it again."
            )
        found = cls(**tensors, num_classes=content.num_classes)
        known = range(found.num_classes)
        if any(int(end) not in known for ids in (found.labels, found.predictions) for end in (ids.min(), ids.max())):
            raise AdapterFileError(
                f"`{path}` names a class beyond its {found.num_classes}. `sensitune evaluate` makes it again."
            )
        return found


def _complaint(name: str, tensor: Tensor) -> str | None:
    if name not in _TYPES:
        return "is none of its tensors"
    if tensor.dtype != _TYPES[name] or tensor.dim() != 1 or not tensor.numel():
        return f"must be {_TYPES[name]} of one dimension, and not empty"
    if name == "confidences" and not bool(((tensor >= 0) & (tensor <= 1)).all()):
        return "must hold probabilities"
    return None
