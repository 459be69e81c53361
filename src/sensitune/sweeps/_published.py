"""A published result to stand beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le

from sensitune._schema import NonEmptyText, check

Percent = Annotated[float, Ge(0), Le(100)]


@dataclass(frozen=True)
class Published:
    """A published result, in per cent as printed.

    Attributes:
        label: What its row is called.
        source: Where it is printed.
        groups: Group -> mean.
        tasks: Task -> accuracy.
        mean: The headline mean.
    """

    label: NonEmptyText
    source: NonEmptyText
    groups: Mapping[str, Percent] = field(default_factory=dict)
    tasks: Mapping[str, Percent] = field(default_factory=dict)
    mean: Percent | None = None

    def __post_init__(self) -> None:
        check(self)
