"""What a batch is: on which device, how many samples count, and how it is cut into micro-batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from typing import Any, TypeAlias

import torch
from torch import nn

from sensitune.errors import DataError

Batch: TypeAlias = Any
LossFn: TypeAlias = Callable[[nn.Module, Batch], torch.Tensor]

IGNORED_LABEL = -100


def map_tensors(batch: Batch, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """The batch with each of its tensors replaced; containers keep their type, other values stay."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, MutableMapping):
        mapped = copy.copy(batch)  # a transformers batch has more than its items
        mapped.update({name: map_tensors(value, function) for name, value in batch.items()})
        return mapped
    if isinstance(batch, (list, tuple)):
        values = [map_tensors(value, function) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch


def placed(batch: Batch, device: torch.device, dtype: torch.dtype | None) -> Batch:
    """The batch on a device, its floating-point inputs (not the labels) in a type; None = their own."""
    moved = map_tensors(batch, lambda tensor: tensor.to(device))
    if dtype is None:
        return moved

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    if isinstance(moved, MutableMapping):
        moved.update({name: map_tensors(value, cast) for name, value in moved.items() if name != "labels"})
    elif isinstance(moved, (list, tuple)) and len(moved) == 2:
        moved = (map_tensors(moved[0], cast), moved[1])
    return moved


def labels_of(batch: Batch) -> torch.Tensor | None:
    """The labels: ``batch["labels"]`` of a dict, the second entry of a pair, None if there are none."""
    labels = None
    if isinstance(batch, MutableMapping):
        labels = batch.get("labels")
    elif isinstance(batch, (list, tuple)) and len(batch) > 1:
        labels = batch[1]
    return labels if isinstance(labels, torch.Tensor) else None


def batch_size_of(batch: Batch) -> int | None:
    """Number of samples: the first dimension of the labels, or of the first tensor; None if there is no tensor."""
    labels = labels_of(batch)
    if labels is not None and labels.dim():
        return labels.shape[0]
    found: list[torch.Tensor] = []
    map_tensors(batch, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return next((tensor.shape[0] for tensor in found if tensor.dim()), None)


def num_counted(model: nn.Module, batch: Batch) -> int:
    """How many terms the mean loss of a batch has: its labels without the ignored ones, else its samples, else 1."""
    labels = labels_of(batch)
    if labels is None or labels.is_floating_point() or not labels.dim():
        size = batch_size_of(batch)
        return 1 if size is None else size
    if labels.dim() > 1 and _predicts_next_token(model):
        labels = labels[..., 1:]  # the first token is never predicted
    return int((labels != IGNORED_LABEL).sum())


def cut(batch: Batch, micro_batch_size: int | None) -> list[Batch]:
    """The batch in pieces of at most `micro_batch_size` samples; what does not run over samples stays whole."""
    size = batch_size_of(batch)
    if micro_batch_size is None or (size is not None and size <= micro_batch_size):
        return [batch]
    if size is None:
        raise DataError("`micro_batch_size` needs batches that hold tensors. Make the batches smaller instead.")

    def piece(start: int) -> Batch:
        def rows(tensor: torch.Tensor) -> torch.Tensor:
            over_samples = tensor.dim() > 0 and tensor.shape[0] == size
            return tensor[start : start + micro_batch_size] if over_samples else tensor

        return map_tensors(batch, rows)

    return [piece(start) for start in range(0, size, micro_batch_size)]


def _predicts_next_token(model: nn.Module) -> bool:
    """Whether a transformers model shifts its labels by one, as decoders do."""
    loss = getattr(model, "loss_function", None)
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return getattr(loss, "__name__", "") == "ForCausalLMLoss" and not encoder_decoder
