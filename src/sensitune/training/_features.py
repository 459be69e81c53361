"""What a frozen backbone hands to its head: the same in every epoch where the head is all that trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from torch.utils.data import Dataset as TorchDataset

from sensitune.data import PreparedImages
from sensitune.sites import find_head
from sensitune.training._loss import logits_of
from sensitune.training._modes import evaluation_mode
from sensitune.training._shares import SharedBatches, Shares


class FrozenFeatures(TorchDataset[dict[str, Tensor]]):
    """The features of a split's images in their place: an item looks like one of `PreparedImages`.

    Args:
        features: What the head reads, ``[images, ...]``.
        labels: Class ids ``[images]``.
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.features[index], "labels": self.labels[index]}


def head_that_trains_alone(model: nn.Module, image: Tensor) -> tuple[nn.Module, int] | None:
    """The head, if nothing but it trains, it is one module, and the model's answer is its answer.

    Args:
        model: A tuned model, or any module.
        image: One image ``[1, 3, height, width]`` to try it with.

    Returns:
        The head and the bytes of an image's features; None if something else trains or comes after the head.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    names = find_head(base)
    if len(names) != 1:
        return None
    head = base.get_submodule(names[0])
    of_head = set(head.parameters())
    if any(each.requires_grad and each not in of_head for each in model.parameters()):
        return None
    with torch.no_grad(), evaluation_mode(model):
        with _inputs_of(head) as inputs:
            logits = logits_of(model, image.to(next(model.parameters()).device))
        if len(inputs) != 1 or not torch.equal(logits_of(head, inputs[0].to(logits.device)), logits):
            return None
    return head, inputs[0].numel() * inputs[0].element_size()


@torch.no_grad()
def features_of(
    model: nn.Module,
    head: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    arithmetic: AbstractContextManager[None] | None = None,
) -> FrozenFeatures:
    """What reaches the head, the model in eval mode.

    Args:
        model: The model.
        head: A module of it that reads one tensor, once in a forward pass.
        batches: Images ``[batch, 3, height, width]`` and class ids ``[batch]``.
        arithmetic: The forward pass's number format; None is the model's own.

    Returns:
        The features and the class ids, on the CPU.
    """
    device = next(head.parameters()).device
    labels = []
    with _inputs_of(head) as features, evaluation_mode(model), arithmetic or nullcontext():
        for images, classes in batches:
            logits_of(model, images.to(device))
            labels.append(classes)
    return FrozenFeatures(torch.cat(features), torch.cat(labels))


def loaded(
    images: PreparedImages | FrozenFeatures, *, batch_size: int, num_workers: int, shares: Shares | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a prepared split in its order, or a process's shares of them."""
    whole = BatchSampler(SequentialSampler(images), batch_size, drop_last=False)
    batches = whole if shares is None else SharedBatches(SequentialSampler(images), shares)
    # Its own generator: a loader otherwise draws from the global one, and training would depend on being evaluated.
    loader = DataLoader(images, batch_sampler=batches, num_workers=num_workers, generator=torch.Generator())
    for batch in loader:
        yield batch["pixel_values"], batch["labels"]


@contextmanager
def _inputs_of(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what a module reads, on the CPU."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.extend(each.cpu() for each in inputs))
    try:
        yield seen
    finally:
        handle.remove()
