"""Lists of image files and class ids -> a `datasets.DatasetDict`, in memory, without reading a pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datasets import DatasetDict


class LabelledFile(NamedTuple):
    """One image file and its class id."""

    path: Path
    label: int


def build_dataset(splits: Mapping[str, Sequence[LabelledFile]], class_names: Sequence[str]) -> DatasetDict:
    """Make a data set that refers to its files by path and decodes an image when it is asked for.

    Args:
        splits: Split name -> its files, in the order the split shall have.
        class_names: Name of every class id.

    Returns:
        The splits, with the columns ``image`` and ``label``.
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=list(class_names))})
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {"image": [str(file.path) for file in files], "label": [file.label for file in files]},
                features=features,
            )
            for name, files in splits.items()
        }
    )
