"""Fewer training images, a number in all or so many of every class; or more, with the validation images among them."""

from __future__ import annotations

from sensitune.data._divide import check_max_train
from sensitune.data._splits import Row, take_stratified
from sensitune.data._types import ImageData, labels_of
from sensitune.errors import ArgumentError, DataError


def few_shot(data: ImageData, shots: int, *, seed: int = 0) -> ImageData:
    """Keep `shots` training images of every class, in their order; the other splits stay whole.

    Args:
        data: The data.
        shots: Images per class.
        seed: Of the choice.

    Returns:
        The data with a smaller training split.

    Raises:
        ArgumentError: If `shots` is below 1.
        DataError: If a class has fewer images.
    """
    if shots < 1:
        raise ArgumentError(f"`shots` must be at least 1 image per class. Got {shots}.")
    rows = _rows(data)
    counts = [0] * data.num_classes
    for row in rows:
        counts[row.label] += 1
    if min(counts) < shots:
        name = data.class_names[counts.index(min(counts))]
        raise DataError(f"Class {name!r} has {min(counts)} training images, fewer than `shots` = {shots}.")
    taken, _ = take_stratified(rows, shots * data.num_classes, seed=seed, at_least=shots)
    return _with_train(data, taken, shots=shots, shots_seed=seed)


def limit_train(data: ImageData, max_train: int, *, seed: int = 0) -> ImageData:
    """Keep at most `max_train` training images, every class its share and at least one, in their order.

    Args:
        data: The data.
        max_train: How many to keep, at least one per class.
        seed: Of the choice.

    Returns:
        The data with a smaller training split.

    Raises:
        ArgumentError: If `max_train` is below the number of classes.
    """
    check_max_train(max_train, data.num_classes)
    taken, _ = take_stratified(_rows(data), max_train, seed=seed, at_least=1)
    return _with_train(data, taken, max_train=max_train, max_train_seed=seed)


def join_validation(data: ImageData) -> ImageData:
    """Train on the training and the validation images, in this order, and have no validation split.

    Args:
        data: The data.

    Returns:
        The data with a larger training split.

    Raises:
        DataError: If there is no validation split.
    """
    from datasets import concatenate_datasets

    if "validation" not in data.dataset:
        raise DataError(f"`train_on_validation` needs a validation split. The data has: {', '.join(data.dataset)}.")
    train = concatenate_datasets([data.dataset["train"], data.dataset["validation"]])
    others = {name: split for name, split in data.dataset.items() if name != "validation"}
    return data.with_splits({**others, "train": train}, train_on_validation=True)


def _rows(data: ImageData) -> list[Row]:
    return [Row(position, label) for position, label in enumerate(labels_of(data.dataset["train"]))]


def _with_train(data: ImageData, rows: list[Row], **recorded: int) -> ImageData:
    train = data.dataset["train"].select([row.position for row in rows])
    return data.with_splits({**data.dataset, "train": train}, **recorded)
