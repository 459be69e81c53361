"""What Hugging Face's `datasets` can read -> labelled splits: the hub, a saved data set, WebDataset shards."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensitune._files import is_bomb
from sensitune._schema import shorten, show_reason
from sensitune.data._divide import check_fractions
from sensitune.data._scan import SPLIT_NAMES
from sensitune.data._splits import Row, take_stratified
from sensitune.data._types import ImageData, labels_of
from sensitune.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_LABEL_COLUMNS = ("label", "labels", "cls", "fine_label")


def load_hub_dataset(name: str, *, config: str | None = None, **options: Any) -> ImageData:
    """Read an image classification data set of the Hugging Face hub.

    Args:
        name: Its name, such as ``"cifar100"`` or ``"owner/name"``.
        config: One of its configurations, if it has several.
        **options: As for `from_datasets`.

    Returns:
        The data.

    Raises:
        DataError: If it cannot be fetched, or is not what `from_datasets` takes.
    """
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, config)
    except Exception as error:  # the hub, its cache and the data set's own files have all kinds of errors
        raise DataError(
            f"The data set {name!r} could not be fetched from the hub ({type(error).__name__}: {show_reason(error)}). "
            f"Fetch it elsewhere, save it with `save_to_disk`, and give that folder."
        ) from error
    return from_datasets(dataset, source=f"hub: {name}" + (f" ({config})" if config else ""), **options)


def load_saved_dataset(path: str | os.PathLike[str], **options: Any) -> ImageData:
    """Read a folder that `datasets` wrote with ``save_to_disk``.

    Args:
        path: The folder.
        **options: As for `from_datasets`.

    Returns:
        The data.

    Raises:
        DataError: If it is damaged, or not what `from_datasets` takes.
    """
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(os.fspath(path))
    except Exception as error:  # a missing or damaged Arrow file surfaces as almost any type
        raise DataError(
            f"The saved data set {path} cannot be read ({type(error).__name__}: {show_reason(error)})."
        ) from error
    return from_datasets(dataset, source=str(Path(path).resolve()), **options)


def load_webdataset(shards: Mapping[str, str] | str | os.PathLike[str], **options: Any) -> ImageData:
    """Read WebDataset shards: tar archives of files that belong together by name, ``0001.jpg`` and ``0001.cls``.

    Args:
        shards: Path or pattern of the shards (``"data/train-*.tar"``), or one for every split by name; a single one
            holds all the data, which is then split.
        **options: As for `from_datasets`.

    Returns:
        The data.

    Raises:
        DataError: If a shard is missing or damaged, or the samples are not what `from_datasets` takes.
    """
    from datasets import load_dataset

    files = dict(shards) if isinstance(shards, Mapping) else {"train": os.fspath(shards)}
    try:
        _refuse_bombs(files.values())
        dataset = load_dataset("webdataset", data_files=files)
    except DataError:
        raise
    except Exception as error:  # a missing or damaged archive surfaces as almost any type
        raise DataError(f"The shards {files} cannot be read ({type(error).__name__}: {show_reason(error)}).") from error
    data = from_datasets(dataset, source=", ".join(files.values()), **options)
    # One by one, for a path may hold a comma.
    return replace(data, info=data.info | {"source": list(files.values())}) if len(files) > 1 else data


def _refuse_bombs(patterns: Iterable[str]) -> None:
    """`datasets` unpacks compressed shards too, whatever their name, and all of them into its cache."""
    for path in (path for pattern in patterns for path in glob(pattern)):
        packed, unpacked = os.path.getsize(path), 0
        with tarfile.open(path) as archive:
            for member in archive:
                unpacked += member.size
                if is_bomb(packed, unpacked):
                    raise DataError(
                        f"The shard {path} of {packed:,} bytes unpacks to more than {unpacked:,}. It is refused."
                    )


def from_datasets(
    dataset: Dataset | DatasetDict,
    *,
    source: str,
    seed: int = 0,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
) -> ImageData:
    """Turn any data set with one column of images and one of labels into labelled splits.

    The image column is the only one of its type; the label column is the only `ClassLabel`, or is called ``label``,
    ``labels``, ``cls`` or ``fine_label``. Labels that are no `ClassLabel` are numbered in sorted order over all splits.
    Missing splits are made as for a folder: ``train`` gives up a test split only where it is all there is.

    Args:
        dataset: The data set.
        source: What to call it.
        seed: Of the split and of the training order.
        validation_fraction: Share that becomes the validation split where there is none; 0 makes none.
        test_fraction: Share of a data set of one split that becomes the test split; 0 makes none.

    Returns:
        The data.

    Raises:
        ArgumentError: If a fraction is out of range.
        DataError: If there is no training split, or the columns cannot be told.
    """
    check_fractions(validation_fraction, test_fraction)
    splits = _known_splits(dataset, source)
    image, label = _columns(splits["train"], source)
    plain = {name: _plain(split, image, label) for name, split in splits.items()}
    plain, class_names = _with_class_ids(plain, source)
    made, how = _fill_in(plain, validation_fraction, test_fraction, seed, source)
    made["train"] = made["train"].shuffle(seed=seed)
    info = {
        "source": source,
        "split": how,
        "seed": seed,
        "split_sizes": {name: len(split) for name, split in made.items()},
        "ignored_splits": [name for name in dataset if name not in SPLIT_NAMES] if isinstance(dataset, dict) else [],
        "train_order": f"shuffled with seed {seed}",
        "licence": getattr(splits["train"].info, "license", None) or None,
    }
    from datasets import DatasetDict

    return ImageData(DatasetDict(made), class_names, info)


def _known_splits(dataset: Dataset | DatasetDict, source: str) -> dict[str, Dataset]:
    from datasets import DatasetDict

    if not isinstance(dataset, DatasetDict):
        return {"train": dataset}
    splits = {SPLIT_NAMES[name]: split for name, split in dataset.items() if name in SPLIT_NAMES}
    if "train" not in splits:
        raise DataError(f"{source} has no split named 'train'. It has: {', '.join(dataset)}.")
    return splits


def _columns(split: Dataset, source: str) -> tuple[str, str]:
    from datasets import ClassLabel, Image

    images = [name for name, feature in split.features.items() if isinstance(feature, Image)]
    classes = [name for name, feature in split.features.items() if isinstance(feature, ClassLabel)]
    labels = classes if len(classes) == 1 else [name for name in _LABEL_COLUMNS if name in split.features][:1]
    if len(images) != 1 or not labels:
        raise DataError(
            f"{source} must have one column of images and one of labels ({', '.join(_LABEL_COLUMNS)}). "
            f"It has: {', '.join(f'{name} ({type(each).__name__})' for name, each in split.features.items())}."
        )
    return images[0], labels[0]


def _plain(split: Dataset, image: str, label: str) -> Dataset:
    chosen = split.select_columns([image, label])
    names = {image: "image", label: "label"}
    return chosen.rename_columns({old: new for old, new in names.items() if old != new})


def _with_class_ids(splits: dict[str, Dataset], source: str) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    from datasets import ClassLabel

    feature = splits["train"].features["label"]
    if isinstance(feature, ClassLabel):
        return splits, tuple(feature.names)
    given = [label for split in splits.values() for label in split["label"][:]]
    if None in given:
        raise DataError(f"{source} has an image without a label. Give all of them one.")
    if odd := [label for label in given if not isinstance(label, int | float | str)]:
        raise DataError(f"Each image of {source} must have one label, a number or a text. One has {shorten(odd[0])}.")
    written = sorted(set(given))
    ids = {label: index for index, label in enumerate(written)}
    names = tuple(map(str, written))
    numbered = {
        name: split.remove_columns("label").add_column(
            "label", [ids[label] for label in split["label"][:]], feature=ClassLabel(names=list(names))
        )
        for name, split in splits.items()
    }
    return numbered, names


def _fill_in(
    splits: dict[str, Dataset], validation_fraction: float, test_fraction: float, seed: int, source: str
) -> tuple[dict[str, Dataset], str]:
    made, how = dict(splits), "as published"
    wanted = {"test": test_fraction if len(splits) == 1 else 0.0, "validation": validation_fraction}
    whole = len(splits["train"])
    for name, fraction in wanted.items():
        if name in made or not fraction:
            continue
        rows = [Row(position, label) for position, label in enumerate(labels_of(made["train"]))]
        taken, rest = take_stratified(rows, round(fraction * whole), seed=seed, leave=1)
        if not taken:
            raise DataError(
                f"The {whole} images of {source} are too few for a {name} split of {fraction:g}: it would hold none."
            )
        made[name] = made["train"].select([row.position for row in taken])
        made["train"] = made["train"].select([row.position for row in rest])
        how += f"; {name} is a stratified {fraction:g} of train"
    return {name: made[name] for name in ("train", "validation", "test") if name in made}, how
