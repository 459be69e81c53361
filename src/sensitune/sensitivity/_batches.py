"""What a batch is: on which device, its labels, how many samples it has."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from typing import Any, TypeAlias

import torch
from torch import nn

Batch: TypeAlias = Any
LossFn: TypeAlias = Callable[[nn.Module, Batch], torch.Tensor]

IGNORED_LABEL = -100


def map_tensors(batch: Batch, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """The batch with each of its tensors replaced; containers keep their type, other values stay."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    return map_entries(batch, lambda value: map_tensors(value, function))


def map_entries(container: Batch, function: Callable[[Batch], Batch]) -> Batch:
    """A container of the same type with each entry replaced; what is no container as it is."""
    if isinstance(container, MutableMapping):
        mapped = copy.copy(container)  # a transformers batch has more than its items
        mapped.update({name: function(value) for name, value in container.items()})
        return mapped
    if isinstance(container, (list, tuple)):
        values = [function(value) for value in container]
        return type(container)(*values) if hasattr(container, "_fields") else type(container)(values)
    return container


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
    labels = _labels_as_given(batch)
    return labels if isinstance(labels, torch.Tensor) else None


def batch_size_of(batch: Batch) -> int | None:
    """Number of samples: of the labels, or the first dimension of the first tensor; None if there is no tensor."""
    labels = _labels_as_given(batch)
    if isinstance(labels, list):  # one entry per sample, as for detection
        return len(labels)
    if isinstance(labels, torch.Tensor) and labels.dim():
        return labels.shape[0]
    found: list[torch.Tensor] = []
    map_tensors(batch, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return next((tensor.shape[0] for tensor in found if tensor.dim()), None)


def _labels_as_given(batch: Batch) -> Any:
    if isinstance(batch, MutableMapping):
        return batch.get("labels")
    return batch[1] if isinstance(batch, (list, tuple)) and len(batch) > 1 else None
