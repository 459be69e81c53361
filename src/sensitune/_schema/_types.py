"""Types with their ranges, for the fields of settings: the rule stands in the annotation and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """A rule of a type's own, as a part of its annotation: ``Annotated[str, Rule("a name without /", has_no_slash)]``.

    Attributes:
        words: What a value must be, as it reads after "must be".
        holds: Whether a value keeps the rule.
    """

    words: str
    holds: Callable[[Any], bool]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(Annotated[source, AfterValidator(self._kept)])

    def _kept(self, value: T) -> T:
        if not self.holds(value):
            raise ValueError(self.words)
        return value


PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
AtLeastOne = Annotated[float, Ge(1)]
Share = Annotated[float, Ge(0), Lt(1)]
"""A part of a whole that is never all of it, such as a drop-out rate."""
UnitInterval = Annotated[float, Ge(0), Le(1)]
"""A part of a whole, all of it included, such as an accuracy."""
ImageSide = Annotated[int, Ge(1), Le(4096)]
"""Pixels; beyond it no machine has the memory."""
NonEmptyText = Annotated[str, MinLen(1)]
