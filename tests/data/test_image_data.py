"""The value itself: what a data set of the user's own making must be."""

from __future__ import annotations

import pytest
from datasets import Dataset, DatasetDict

from sensitune.data import ImageData
from sensitune.errors import DataError


def splits(**labels: list[int | None]) -> DatasetDict:
    return DatasetDict({name: Dataset.from_dict({"image": ids, "label": ids}) for name, ids in labels.items()})


def test_sizes_are_counted() -> None:
    data = ImageData(splits(train=[0, 1, 1], test=[0]), ("a", "b"))
    assert data.num_classes == 2
    assert data.split_sizes == {"train": 3, "test": 1}


@pytest.mark.parametrize("wrong", [2, -1, None])
def test_labels_out_of_range_are_refused(wrong: int | None) -> None:
    message = f"Labels must be class ids from 0 to 1. Image 1 of split 'test' has {wrong}"
    with pytest.raises(DataError, match=message):
        ImageData(splits(train=[0, 1], test=[0, wrong]), ("a", "b"))


def test_data_without_a_training_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"needs a split named 'train'. It has: validation"):
        ImageData(splits(validation=[0, 1]), ("a", "b"))


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="Split 'validation' has no images"):
        ImageData(splits(train=[0, 1], validation=[]), ("a", "b"))


def test_a_missing_column_is_refused() -> None:
    dataset = DatasetDict({"train": Dataset.from_dict({"img": [1], "label": [0]})})
    with pytest.raises(DataError, match=r"Split 'train' has no column 'image'. It has: img, label"):
        ImageData(dataset, ("a", "b"))


def test_one_class_is_not_enough() -> None:
    with pytest.raises(DataError, match=r"needs at least 2 classes. It has: a"):
        ImageData(splits(train=[0]), ("a",))
