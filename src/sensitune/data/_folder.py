"""A folder of class folders -> labelled splits, every image checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sensitune.data._build import LabelledFile, build_dataset
from sensitune.data._divide import check_fractions, check_max_train, divide
from sensitune.data._scan import (
    Tree,
    check_tree,
    count_other_files,
    existing_folder,
    scan_folder,
    without_unreadable,
)
from sensitune.data._splits import shuffled, take_stratified
from sensitune.data._types import ImageData


def load_image_folder(
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    max_train: int | None = None,
    skip_unreadable: bool = False,
    max_pixels: int | None = None,
) -> ImageData:
    """Read ``class_name/*.jpg``, or the same under ``train``, ``val`` (or ``validation``, ``valid``) and ``test``.

    Class ids follow the sorted class names. A folder without splits is split at random, every class keeping its share
    and at least one training image; where only the validation split is missing, it is taken from ``train``. A test
    split is never taken out of a ``train`` folder. The training split is put in a random order, so that its first
    batches hold every class; the others keep the files' order. Hidden files and other file types are left alone. Links
    are followed, names that look the same are one class, and the case of splits and suffixes does not matter.

    Args:
        path: The folder.
        seed: Of the split and of the training order.
        validation_fraction: Share of what is split that becomes the validation split where there is none; 0 makes none.
        test_fraction: Share of a folder without splits that becomes the test split; 0 makes none.
        max_train: Keep at most so many training images, every class its share; None keeps all.
        skip_unreadable: Leave damaged images out and count them, instead of refusing the folder.
        max_pixels: Pixels that an image may have; None is Pillow's limit, 89 million.

    Returns:
        The data; its `info` records source, seed, how it was split, sizes, skipped and ignored files.

    Raises:
        ArgumentError: If a fraction or `max_train` is out of range.
        DataError: If the folder, a split or a class folder is missing or empty, there are fewer than 2 classes, a split
            has a class that ``train`` lacks, or an image cannot be read.
    """
    check_fractions(validation_fraction, test_fraction)
    root = existing_folder(path)
    tree = scan_folder(root)
    check_tree(tree, root)
    others = count_other_files(root, tree)
    tree, skipped = without_unreadable(tree, skip=skip_unreadable, max_pixels=max_pixels)
    check_tree(tree, root)
    class_names = sorted({name for classes in tree.values() for name in classes})
    splits, how = divide(
        _label(tree, class_names), validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed
    )
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


def _label(tree: Tree, class_names: Sequence[str]) -> dict[str, list[LabelledFile]]:
    ids = {name: label for label, name in enumerate(class_names)}
    return {
        split: [LabelledFile(file, ids[name]) for name in sorted(classes) for file in classes[name]]
        for split, classes in tree.items()
    }


def _limit(train: list[LabelledFile], max_train: int | None, num_classes: int, seed: int) -> list[LabelledFile]:
    if max_train is None:
        return train
    check_max_train(max_train, num_classes)
    return take_stratified(train, max_train, seed=seed, at_least=1)[0]
