"""The loss of a batch when the caller gives none."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from sensitune.errors import DataError, ModelError
from sensitune.sensitivity._batches import IGNORED_LABEL, Batch


def default_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The mean loss: a transformers model's own for a dict, cross-entropy for ``(inputs, labels)``.

    Args:
        model: The model.
        batch: A dict of keyword arguments with labels, or a pair of inputs and labels (class indices ``[B]`` or
            ``[B, T]``, -100 ignored; or class probabilities of the logits' shape). Logits ``[B, classes]`` or
            ``[B, T, classes]``.

    Returns:
        A scalar.

    Raises:
        DataError: If the batch is neither, a label is out of range, or logits and labels are not of these shapes.
        ModelError: If the model returns no loss or no logits.
    """
    if isinstance(batch, MutableMapping):
        return _own_loss(model, batch)
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        return _cross_entropy(_logits(model(batch[0])), batch[1])
    shape = f"{type(batch).__name__} of length {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
    raise DataError(f"A batch must be `(inputs, labels)` or a dict. Got {shape}. Give `loss_fn` for other batches.")


def _own_loss(model: nn.Module, batch: MutableMapping[str, Any]) -> torch.Tensor:
    num_classes = _num_classes(model)
    if num_classes is not None and isinstance(batch.get("labels"), torch.Tensor):
        check_labels(batch["labels"], num_classes)
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ModelError(
            f"{type(model).__name__} returned no loss for a batch with {', '.join(map(str, batch))}. "
            "Add `labels` to the batch, or give `loss_fn`."
        )
    return loss  # type: ignore[no-any-return]


def _num_classes(model: nn.Module) -> int | None:
    """Logits of a transformers classifier, known before the model runs (on a GPU a bad label ends the process)."""
    kind = getattr(model, "loss_type", None) or ""
    num_labels = getattr(getattr(model, "config", None), "num_labels", None)
    # With one label the task is a regression, and labels are numbers.
    return num_labels if kind.endswith("Classification") and num_labels != 1 else None


def _logits(output: Any) -> torch.Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor):
        raise ModelError(
            f"The model must return logits. Got {type(output).__name__}. Give `loss_fn` to say what to do."
        )
    return logits


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    _check_classes(logits, labels)
    if labels.is_floating_point():
        return functional.cross_entropy(logits.flatten(0, -2), labels.flatten(0, -2).to(logits.dtype))
    check_labels(labels, logits.shape[-1])
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten().long(), ignore_index=IGNORED_LABEL)


def _check_classes(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse what is no classification with the classes last, and what could be read in two ways."""
    shapes = f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)}"
    if logits.dim() < 2 or logits.shape[-1] < 2:
        raise DataError(
            f"The loss of {shapes} is not cross-entropy: there must be at least 2 classes. Give `loss_fn`, for a "
            "regression `lambda model, batch: functional.mse_loss(model(batch[0]), batch[1])`."
        )
    if labels.is_floating_point():
        fits = labels.shape == logits.shape and bool((labels >= 0).all())
        if not fits or not torch.allclose(labels.sum(dim=-1), labels.new_ones(()), atol=1e-2):
            raise DataError(
                f"Labels that are no integers must be probabilities of the classes: of the logits' shape, from 0 on, "
                f"1 in all. Got {shapes}. Give `loss_fn` for a regression or for several classes at once."
            )
        return
    other = logits.dim() > 2 and labels.shape == (logits.shape[0], *logits.shape[2:])  # as torch has segmentation
    if other or labels.shape not in (logits.shape[:-1], (*logits.shape[:-1], 1)):
        raise DataError(
            f"Which axis holds the classes cannot be told from {shapes}: cross-entropy of a pair takes [B, classes] "
            "with [B], or [B, T, classes] with [B, T]. Give `loss_fn`, for a segmentation "
            "`lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1])`."
        )


def check_labels(labels: torch.Tensor, num_classes: int) -> None:
    """Refuse class indices that no logit stands for.

    Args:
        labels: Class indices, -100 ignored; anything but integers is not checked.
        num_classes: Number of logits.

    Raises:
        DataError: If a label is below 0 or not below `num_classes`.
    """
    if labels.is_floating_point() or not labels.numel():
        return
    wrong = labels[(labels != IGNORED_LABEL) & ((labels < 0) | (labels >= num_classes))]
    if wrong.numel():
        raise DataError(
            f"Label {int(wrong[0])} is out of range: the model has {num_classes} logits, so labels lie between 0 and "
            f"{num_classes - 1}. Correct the labels or make the model with more classes."
        )
