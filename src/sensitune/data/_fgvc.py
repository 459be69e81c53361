"""FGVC: five fine-grained data sets with the field's JSON splits (Jia et al., arXiv:2203.12119)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from sensitune._schema import read_json, shorten
from sensitune.data._build import LabelledFile, build_dataset
from sensitune.data._lists import check_exist, is_number, path_inside
from sensitune.data._types import ImageData
from sensitune.errors import ArgumentError, DataError

FGVC_ROOT: Final = Path("data/fgvc")
_SPLITS: Final = {"train": "train.json", "validation": "val.json", "test": "test.json"}


@dataclass(frozen=True, slots=True)
class FgvcDataset:
    """One data set of FGVC.

    Attributes:
        name: Its short name.
        folder: Name of the folder that its own archive unpacks to.
        images: Where in that folder the paths of the splits begin; empty is the folder itself.
        num_classes: Number of classes.
    """

    name: str
    folder: str
    images: str
    num_classes: int


_TABLE: Final = (
    FgvcDataset("cub", "CUB_200_2011", "images", 200),
    FgvcDataset("nabirds", "nabirds", "images", 555),
    FgvcDataset("flowers", "OxfordFlower", "", 102),
    FgvcDataset("dogs", "Stanford-dogs", "Images", 120),
    FgvcDataset("cars", "Stanford-cars", "", 196),
)
FGVC_DATASETS: Final[Mapping[str, FgvcDataset]] = MappingProxyType({each.name: each for each in _TABLE})
"""The five data sets by name, in the order of the field's tables."""


def load_fgvc(name: str, *, root: str | os.PathLike[str] | None = None, train_on_validation: bool = False) -> ImageData:
    """Read one data set from its folder with ``train.json``, ``val.json`` and ``test.json`` beside its images.

    Each file maps relative paths to class ids. The ids of a data set need not start at 0 nor be without gaps, and a
    split need not hold every class, so ids are numbered in order over the union of the three splits.

    Args:
        name: ``cub``, ``nabirds``, ``flowers``, ``dogs`` or ``cars``.
        root: Folder that holds the data set's own, by its short name or as its archive names it; None is
            ``data/fgvc``.
        train_on_validation: Train on both training and validation images, and have no validation split.

    Returns:
        The data. The class names are the ids as they are written.

    Raises:
        ArgumentError: If there is no such data set.
        DataError: If the folder or a split is missing, damaged, names a missing image, or the splits together hold
            another number of classes than the data set.
    """
    if name not in FGVC_DATASETS:
        raise ArgumentError(f"FGVC has no data set {name!r}. It has: {', '.join(FGVC_DATASETS)}.")
    spec = FGVC_DATASETS[name]
    folder = _folder(spec, Path(FGVC_ROOT if root is None else root).expanduser())
    splits, ids = _label_files(folder, spec)
    if train_on_validation:
        splits = {"train": [*splits["train"], *splits["validation"]], "test": splits["test"]}
    info = {
        "source": str(folder.resolve()),
        "benchmark": f"fgvc/{name}",
        "split": "train.json and val.json" if train_on_validation else "train.json, val.json",
        "split_sizes": {split: len(files) for split, files in splits.items()},
        "train_order": "as in the list",
        "licence": None,
    }
    class_names = tuple(map(str, ids))
    return ImageData(build_dataset(splits, class_names), class_names, info)


def _label_files(folder: Path, spec: FgvcDataset) -> tuple[dict[str, list[LabelledFile]], list[int]]:
    """The files of every split under class ids from 0, and what each id was."""
    written = {split: _read_split(folder / file) for split, file in _SPLITS.items()}
    ids = sorted({label for labels in written.values() for label in labels.values()})
    if len(ids) != spec.num_classes:
        raise DataError(f"{spec.name} has {spec.num_classes} classes, but the splits in {folder} hold {len(ids)}.")
    number = {label: index for index, label in enumerate(ids)}
    splits = {}
    for split, labels in written.items():
        source = f"The split {folder / _SPLITS[split]}"
        files = [LabelledFile(_image(folder, spec, path, source), number[label]) for path, label in labels.items()]
        check_exist(files, source=source)
        splits[split] = files
    return splits, ids


def _folder(spec: FgvcDataset, root: Path) -> Path:
    candidates = [root / spec.name, root / spec.folder]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataError(
        f"{spec.name} is neither in {candidates[0]} nor in {candidates[1]}. "
        f"Unpack its archive there and put train.json, val.json and test.json beside the images."
    )


def _read_split(path: Path) -> dict[str, int]:
    content = read_json(path, error=DataError)
    if not isinstance(content, dict) or not content:
        raise DataError(f'The split {path} must map image paths to class ids: {{"a/b.jpg": 3, ...}}.')
    return {name: _class_id(label, name, path) for name, label in content.items()}


def _class_id(label: Any, name: str, path: Path) -> int:
    """Some published files write the ids as text."""
    if isinstance(label, bool) or not isinstance(label, int | str) or not is_number(str(label)):
        raise DataError(f"The split {path} gives {name!r} the class id {shorten(label)}. It must be a whole number.")
    return int(label)


def _image(folder: Path, spec: FgvcDataset, name: str, source: str) -> Path:
    """Cars come as ``cars_train/`` and ``cars_test/`` or as ``car_ims/``; mirrors nest each once more in itself."""
    path = path_inside(folder / spec.images, name, where=source)
    nested = path.parent / path.parent.name / path.name
    return nested if spec.name == "cars" and not os.path.exists(path) and os.path.exists(nested) else path
