"""The value every source of images turns into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import DatasetDict


@dataclass(frozen=True, slots=True)
class ImageData:
    """Labelled images in named splits.

    Attributes:
        dataset: Splits ``train``, ``validation`` and, where there is one, ``test``, each with the columns ``image``
            (`datasets.Image`) and ``label`` (`datasets.ClassLabel`).
        class_names: Name of every class id.
        info: Where it comes from, JSON-ready: source, split sizes, how and with which seed it was split, skipped
            files, licence.
    """

    dataset: DatasetDict
    class_names: tuple[str, ...]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)
