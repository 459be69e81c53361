"""The value every source of images turns into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sensitune.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


@dataclass(frozen=True, slots=True)
class ImageData:
    """Labelled images in named splits; checked once when it is made.

    Attributes:
        dataset: Splits ``train`` and, where there are any, ``validation`` and ``test``, each with the columns ``image``
            (`datasets.Image`) and ``label`` (class ids from 0).
        class_names: Name of every class id.
        info: Where it comes from, JSON-ready: source, split sizes, how and with which seed it was split, skipped
            files, licence.

    Raises:
        DataError: If there is no ``train`` split, fewer than 2 classes, an empty split, a missing column, or a label
            that is no class id.
    """

    dataset: DatasetDict
    class_names: tuple[str, ...]
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "train" not in self.dataset:
            raise DataError(f"The data needs a split named 'train'. It has: {', '.join(self.dataset) or 'none'}.")
        if self.num_classes < 2:
            raise DataError(f"The data needs at least 2 classes. It has: {', '.join(self.class_names) or 'none'}.")
        for name, split in self.dataset.items():
            _check_split(name, split, self.num_classes)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def split_sizes(self) -> dict[str, int]:
        """Number of images of every split."""
        return {name: len(split) for name, split in self.dataset.items()}

    def with_splits(self, splits: Mapping[str, Dataset], **recorded: Any) -> ImageData:
        """The same data in other splits.

        Args:
            splits: Split name -> images.
            **recorded: What `info` says of the change.

        Returns:
            New data with the splits' sizes recorded.
        """
        sizes = {name: len(split) for name, split in splits.items()}
        info = {**self.info, **recorded, "split_sizes": sizes}
        return replace(self, dataset=type(self.dataset)(splits), info=info)


def labels_of(split: Dataset) -> list[int]:
    """The class ids of a split, without decoding its images."""
    return list(split["label"][:])  # a slice comes as one column, iteration row by row


def _check_split(name: str, split: Dataset, num_classes: int) -> None:
    if missing := {"image", "label"} - set(split.column_names):
        raise DataError(f"Split {name!r} has no column {min(missing)!r}. It has: {', '.join(split.column_names)}.")
    if len(split) == 0:
        raise DataError(f"Split {name!r} has no images. Add some, or leave the split out.")
    for index, label in enumerate(labels_of(split)):
        if not isinstance(label, int) or not 0 <= label < num_classes:
            raise DataError(
                f"Labels must be class ids from 0 to {num_classes - 1}. Image {index} of split {name!r} has {label}."
            )
