"""Lists of image files and class ids -> a `datasets.DatasetDict`, in memory, without reading a pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sensitune._text import is_text, visible
from sensitune.errors import DataError

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

    Raises:
        DataError: If a name cannot be written as UTF-8.
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

    for name in chain(class_names, (str(file.path) for files in splits.values() for file in files)):
        if not is_text(name):
            raise DataError(f"The name {visible(name)} is not UTF-8, so no file could hold it. Rename it.")

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
