"""A model's answers on images it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensitune._processes import Processes
from sensitune.data import ImageTransform, PreparedImages
from sensitune.errors import ArgumentError, DataError, NonFiniteError
from sensitune.training._device import autocast, resolve_device, resolve_dtype
from sensitune.training._features import FrozenFeatures, loaded
from sensitune.training._loss import logits_of
from sensitune.training._modes import evaluation_mode
from sensitune.training._recipe import Precision
from sensitune.training._shares import Shares

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        accuracy: Share of images whose most probable class is their label, in [0, 1].
        loss: Mean cross-entropy over the images, without label smoothing.
        num_images: Number of images.
        predictions: Most probable class id of every image [num_images], in the split's order.
        labels: The right one.
        confidences: Probability of the most probable one, float32.
    """

    accuracy: float
    loss: float
    num_images: int
    predictions: Tensor = field(repr=False, compare=False)
    labels: Tensor = field(repr=False, compare=False)
    confidences: Tensor = field(repr=False, compare=False)


def evaluate(
    model: nn.Module,
    split: Dataset | PreparedImages | FrozenFeatures,
    transform: ImageTransform | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    num_workers: int = 0,
    distributed: bool = True,
    progress: Callable[[int, int | None], None] | None = None,
) -> Evaluation:
    """Accuracy and loss of a model on a labelled split, without augmentation. The random state is left as it was.

    Args:
        model: Returns logits [batch, classes], alone or as ``.logits``. It is moved to `device`; its training flags
            are put back.
        split: A split of `ImageData.dataset`, or one that is prepared already.
        transform: How images become tensors; None only for a prepared split.
        batch_size: Images per forward pass.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: ``"auto"``, ``"float32"`` or ``"bfloat16"``.
        num_workers: Processes that read images; 0 reads them in this one.
        distributed: Where torch.distributed is initialised, the processes share every batch, each must call this, and
            all get the same answer. False = each process evaluates all images for itself.
        progress: Called with the images done and their number after every batch.

    Returns:
        The evaluation.

    Raises:
        ArgumentError: If `batch_size` or `num_workers` is out of range.
        DataError: If the split has no images.
        NonFiniteError: If the loss is not finite: such a model gives no answers.
    """
    found = measure(
        model,
        split,
        transform,
        batch_size=batch_size,
        device=device,
        precision=precision,
        num_workers=num_workers,
        processes=Processes.found() if distributed else Processes(),
        progress=progress,
    )
    if not math.isfinite(found.loss):
        raise NonFiniteError(
            f"The loss must be finite. Got {found.loss} on {found.num_images:,} images: the model gives no answers."
        )
    return found


def measure(
    model: nn.Module,
    split: Dataset | PreparedImages | FrozenFeatures,
    transform: ImageTransform | None = None,
    *,
    batch_size: int,
    device: str | torch.device,
    precision: Precision,
    num_workers: int,
    processes: Processes | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Evaluation:
    """`evaluate` for those who say themselves what a loss that is not finite comes from."""
    _check_counts(batch_size, num_workers)
    images = prepare(split, transform)
    if len(images) == 0:
        raise DataError("A split to evaluate must hold at least one image. Got an empty one.")
    forward = _forward_pass(model, device=device, precision=precision)
    shares = Shares(len(images), batch_size, Processes.found() if processes is None else processes)
    answers = []
    with evaluation_mode(model):
        batches = loaded(images, batch_size=batch_size, num_workers=num_workers, shares=shares)
        for number, (pixel_values, labels) in enumerate(batches):
            start, stop = shares.part(number)
            answers.append(_Answers.of(forward(pixel_values)[: stop - start], labels[: stop - start]))
            if progress is not None:
                progress(min((number + 1) * batch_size, len(images)), len(images))
    parts = shares.processes.gather(answers)
    return _score([each for batch in zip(*parts, strict=True) for each in batch])


def predict_probabilities(
    model: nn.Module,
    images: Iterable[Image.Image],
    transform: ImageTransform,
    *,
    batch_size: int = 64,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
) -> Tensor:
    """Class probabilities of images.

    Args:
        model: Returns logits [batch, classes], alone or as ``.logits``. It is moved to `device`.
        images: Decoded images; read lazily, `batch_size` at a time.
        transform: How images become tensors; augmentation is left out.
        batch_size: Images per forward pass.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: ``"auto"``, ``"float32"`` or ``"bfloat16"``.

    Returns:
        Probabilities [images, classes], float32, on the CPU, in the order of `images`.

    Raises:
        ArgumentError: If `batch_size` is out of range.
        DataError: If there are no images.
    """
    _check_counts(batch_size)
    to_tensor = transform.for_evaluation()
    forward = _forward_pass(model, device=device, precision=precision)
    tensors = (to_tensor(image) for image in images)
    probabilities = []
    with evaluation_mode(model):
        while batch := list(islice(tensors, batch_size)):
            probabilities.append(forward(torch.stack(batch)).softmax(1))
    if not probabilities:
        raise DataError("There must be at least one image to predict. Got none.")
    return torch.cat(probabilities)


def prepare(
    split: Dataset | PreparedImages | FrozenFeatures, transform: ImageTransform | None
) -> PreparedImages | FrozenFeatures:
    """The split under the transform without augmentation; a prepared split as it is."""
    if isinstance(split, (PreparedImages, FrozenFeatures)):
        return split
    if transform is None:
        raise ArgumentError("`transform` must be given for a split that is not a `PreparedImages`. Got None.")
    return PreparedImages(split, transform.for_evaluation())


def _check_counts(batch_size: int, num_workers: int = 0) -> None:
    if batch_size < 1:
        raise ArgumentError(f"`batch_size` must be at least 1. Got {batch_size}.")
    if num_workers < 0:
        raise ArgumentError(f"`num_workers` must be at least 0. Got {num_workers}.")


def _forward_pass(model: nn.Module, *, device: str | torch.device, precision: Precision) -> Callable[[Tensor], Tensor]:
    """The model on its device as a function from images to logits on the CPU, without gradients."""
    place = resolve_device(device)
    dtype = resolve_dtype(precision, place)
    model.to(place)

    def forward(pixel_values: Tensor) -> Tensor:
        with torch.no_grad(), autocast(place, dtype):
            return logits_of(model, pixel_values.to(place)).cpu()

    return forward


@dataclass(frozen=True)
class _Answers:
    """To some images: classes, the right ones, losses, and how probable the classes are ``[images]``."""

    predictions: Tensor
    labels: Tensor
    losses: Tensor
    confidences: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> _Answers:
        losses = functional.cross_entropy(logits.double(), labels, reduction="none")
        confidences = logits.double().softmax(1).amax(1).float()
        return cls(logits.argmax(1), labels, losses, confidences)


def _score(answers: Sequence[_Answers]) -> Evaluation:
    predictions, labels, losses, confidences = (
        torch.cat([getattr(each, name) for each in answers])
        for name in ("predictions", "labels", "losses", "confidences")
    )
    return Evaluation(
        accuracy=(predictions == labels).double().mean().item(),
        loss=losses.mean().item(),
        num_images=len(predictions),
        predictions=predictions,
        labels=labels,
        confidences=confidences,
    )
