"""A folder of class folders -> labelled splits, every image checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sensitune.data._build import LabelledFile, build_dataset
from sensitune.data._scan import (
    WHOLE,
    Tree,
    check_tree,
    count_other_files,
    existing_folder,
    scan_folder,
    without_unreadable,
)
from sensitune.data._splits import shuffled, take_stratified
from sensitune.data._types import ImageData
from sensitune.errors import ArgumentError, DataError


def load_image_folder(
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    max_train: int | None = None,
    skip_unreadable: bool = False,
) -> ImageData:
    """Read ``class_name/*.jpg``, or the same under ``train``, ``val`` (or ``validation``) and ``test``.

    Class ids follow the sorted class names. A folder without splits is split at random, every class keeping its share
    and at least one training image; where only the validation split is missing, it is taken from ``train``. A test
    split is never taken out of a ``train`` folder. The training split is put in a random order, so that its first
    batches hold every class; the others keep the files' order. Hidden files and other file types are left alone.

    Args:
        path: The folder.
        seed: Of the split and of the training order.
        validation_fraction: Share of what is split that becomes the validation split where there is none; 0 makes none.
        test_fraction: Share of a folder without splits that becomes the test split; 0 makes none.
        max_train: Keep at most so many training images, every class its share; None keeps all.
        skip_unreadable: Leave damaged images out and count them, instead of refusing the folder.

    Returns:
        The data; its `info` records source, seed, how it was split, sizes, skipped and ignored files.

    Raises:
        ArgumentError: If a fraction or `max_train` is out of range.
        DataError: If the folder, a split or a class folder is missing or empty, there are fewer than 2 classes, a split
            has a class that ``train`` lacks, or an image cannot be read.
    """
    _check_fractions(validation_fraction, test_fraction)
    root = existing_folder(path)
    tree = scan_folder(root)
    check_tree(tree, root)
    others = count_other_files(root, tree)
    tree, skipped = without_unreadable(tree, skip=skip_unreadable)
    check_tree(tree, root)
    class_names = sorted({name for classes in tree.values() for name in classes})
    splits, how = _divide(_label(tree, class_names), validation_fraction, test_fraction, seed)
    splits["train"] = _limit(splits["train"], max_train, len(class_names), seed)
    info: dict[str, Any] = {
        "source": str(root.resolve()),
        "split": how,
        "seed": seed,
        "split_sizes": {name: len(files) for name, files in splits.items()},
        "train_order": f"shuffled with seed {seed}",
        "skipped_unreadable": [str(each.relative_to(root)) for each in skipped],
        "ignored_files": others,
        "licence": None,
    }
    splits["train"] = shuffled(splits["train"], seed=seed)
    return ImageData(build_dataset(splits, class_names), tuple(class_names), info)


def _check_fractions(validation: float, test: float) -> None:
    if min(validation, test) < 0 or validation + test >= 1:
        raise ArgumentError(
            f"`validation_fraction` and `test_fraction` must be at least 0 and leave some for training. "
            f"Got {validation} and {test}."
        )


def _label(tree: Tree, class_names: Sequence[str]) -> dict[str, list[LabelledFile]]:
    ids = {name: label for label, name in enumerate(class_names)}
    return {
        split: [LabelledFile(file, ids[name]) for name in sorted(classes) for file in classes[name]]
        for split, classes in tree.items()
    }


def _divide(
    splits: dict[str, list[LabelledFile]], validation_fraction: float, test_fraction: float, seed: int
) -> tuple[dict[str, list[LabelledFile]], str]:
    """Fill in the splits that the folder does not have, and say in words what was done."""
    if WHOLE not in splits:
        how = "as in the folder" if "test" in splits else "as in the folder, no test split"
        if "validation" in splits or not validation_fraction:
            return _in_order(splits), how
        validation, train = _hold_out(splits["train"], validation_fraction, len(splits["train"]), seed, "validation")
        made = splits | {"train": train, "validation": validation}
        return _in_order(made), f"{how}; validation is a stratified {validation_fraction:g} of train"
    files = splits[WHOLE]
    test, rest = _hold_out(files, test_fraction, len(files), seed, "test")
    validation, train = _hold_out(rest, validation_fraction, len(files), seed, "validation")
    made = {"train": train, "validation": validation, "test": test}
    how = f"stratified; validation is {validation_fraction:g} and test {test_fraction:g} of the whole"
    return {name: each for name, each in made.items() if each}, how


def _hold_out(
    files: list[LabelledFile], fraction: float, whole: int, seed: int, name: str
) -> tuple[list[LabelledFile], list[LabelledFile]]:
    taken, rest = take_stratified(files, round(fraction * whole), seed=seed, leave=1)
    if fraction and not taken:
        raise DataError(
            f"{len(files)} images are too few for a {name} split of {fraction:g}: it would hold none. "
            f"Add images, or set `{name}_fraction` to 0."
        )
    return taken, rest


def _limit(train: list[LabelledFile], max_train: int | None, num_classes: int, seed: int) -> list[LabelledFile]:
    if max_train is None:
        return train
    if max_train < num_classes:
        raise ArgumentError(f"`max_train` must be at least {num_classes}, one image per class. Got {max_train}.")
    return take_stratified(train, max_train, seed=seed, at_least=1)[0]


def _in_order(splits: dict[str, list[LabelledFile]]) -> dict[str, list[LabelledFile]]:
    return {name: splits[name] for name in ("train", "validation", "test") if name in splits}
