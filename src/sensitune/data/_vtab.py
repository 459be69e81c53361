"""VTAB-1k: 19 tasks of 1,000 training images each (Zhai et al., arXiv:1910.04867), in the layout everyone shares."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from sensitune.data._build import LabelledFile, build_dataset
from sensitune.data._lists import check_count, read_list
from sensitune.data._types import ImageData
from sensitune.errors import ArgumentError, DataError

VtabGroup = Literal["natural", "specialized", "structured"]
VTAB_ROOT: Final = Path("data/vtab-1k")
VTAB_SIZES: Final[Mapping[str, int]] = MappingProxyType({"train800": 800, "val200": 200, "train800val200": 1000})
"""The splits that are as large for every task."""


@dataclass(frozen=True, slots=True)
class VtabTask:
    """One task of VTAB-1k.

    Attributes:
        name: Name of its folder.
        group: Which of the three group means it counts in.
        num_classes: Number of classes.
        test_sizes: How many test images it may have: the official number, and where the usual conversion differs, its.
    """

    name: str
    group: VtabGroup
    num_classes: int
    test_sizes: tuple[int, ...]


_TABLE: Final = (
    VtabTask("cifar", "natural", 100, (10_000,)),
    VtabTask("caltech101", "natural", 102, (6_084, 6_085)),
    VtabTask("dtd", "natural", 47, (1_880,)),
    VtabTask("oxford_flowers102", "natural", 102, (6_149,)),
    VtabTask("svhn", "natural", 10, (26_032,)),
    VtabTask("sun397", "natural", 397, (21_750,)),
    VtabTask("oxford_iiit_pet", "natural", 37, (3_669,)),
    VtabTask("patch_camelyon", "specialized", 2, (32_768,)),
    VtabTask("eurosat", "specialized", 10, (5_400,)),
    VtabTask("resisc45", "specialized", 45, (6_300,)),
    VtabTask("diabetic_retinopathy", "specialized", 5, (42_670,)),
    VtabTask("clevr_count", "structured", 8, (15_000,)),
    VtabTask("clevr_dist", "structured", 6, (15_000,)),
    VtabTask("dmlab", "structured", 6, (22_735,)),
    VtabTask("kitti", "structured", 4, (711,)),
    VtabTask("dsprites_loc", "structured", 16, (73_728,)),
    VtabTask("dsprites_ori", "structured", 16, (73_728,)),
    VtabTask("smallnorb_azi", "structured", 18, (12_150,)),
    VtabTask("smallnorb_ele", "structured", 9, (12_150,)),
)
VTAB_TASKS: Final[Mapping[str, VtabTask]] = MappingProxyType({task.name: task for task in _TABLE})
"""The 19 tasks by name, in the order of the field's tables."""


def vtab_task(name: str) -> VtabTask:
    """One task by name.

    Args:
        name: Such as ``"cifar"``.

    Returns:
        The task.

    Raises:
        ArgumentError: If there is no such task.
    """
    if name not in VTAB_TASKS:
        raise ArgumentError(f"VTAB-1k has no task {name!r}. It has: {', '.join(VTAB_TASKS)}.")
    return VTAB_TASKS[name]


def load_vtab1k(
    task: str, *, root: str | os.PathLike[str] | None = None, train_on_validation: bool = False
) -> ImageData:
    """Read one task from ``<root>/<task>/{train800,val200,train800val200,test}.txt``.

    A line is ``images/<split>/000000.png 307``: a path relative to the task's folder and a class id. The files' order
    is kept, as the published sensitivity is taken over the first training images in file order.

    Args:
        task: Name of the task.
        root: Folder of the task folders; None is ``data/vtab-1k``.
        train_on_validation: False trains on train800 and has val200 to choose settings with; True trains on
            train800val200, for the run that is tested, and has no validation split.

    Returns:
        The data. Class ids are also the class names, which the layout does not carry.

    Raises:
        ArgumentError: If there is no such task.
        DataError: If a list is missing, names a missing image, has a label out of range or the wrong number of lines,
            or the lists together do not hold every class.
    """
    spec = vtab_task(task)
    folder = Path(VTAB_ROOT if root is None else root).expanduser() / task
    if not folder.is_dir():
        raise DataError(
            f"The folder {folder} does not exist. Give the folder of the task folders as `root`, or make it with "
            f"`sensitune data vtab1k`."
        )
    parts = {"train": "train800val200"} if train_on_validation else {"train": "train800", "validation": "val200"}
    splits = {name: _read_split(folder, split, spec) for name, split in (parts | {"test": "test"}).items()}
    _check_classes(splits, spec, folder)
    class_names = tuple(map(str, range(spec.num_classes)))
    info = {
        "source": str(folder.resolve()),
        "benchmark": f"vtab1k/{task}",
        "group": spec.group,
        "split": ", ".join(parts.values()),
        "split_sizes": {name: len(files) for name, files in splits.items()},
        "train_order": "as in the list",
        "licence": None,
    }
    return ImageData(build_dataset(splits, class_names), class_names, info)


def _read_split(folder: Path, split: str, task: VtabTask) -> list[LabelledFile]:
    path = folder / f"{split}.txt"
    files = read_list(path, images=folder, num_classes=task.num_classes)
    expected = task.test_sizes if split == "test" else (VTAB_SIZES[split],)
    check_count(files, expected=expected, source=str(path))
    return files


def _check_classes(splits: Mapping[str, Sequence[LabelledFile]], task: VtabTask, folder: Path) -> None:
    found = {file.label for files in splits.values() for file in files}
    if len(found) != task.num_classes:
        raise DataError(
            f"{task.name} has {task.num_classes} classes, but the lists in {folder} hold {len(found)} of them. "
            f"Is it another data set?"
        )
