"""Frozen dataclasses <-> plain values, YAML and JSON, strictly: the one way that settings and files are read.

The dataclasses are the standard library's; pydantic checks values against their annotations, so a range is written
once, in the type (``epochs: PositiveInt = 100``), and holds for a file, a call in Python and the command line alike.

    file ──read_yaml, read_json──▶ mapping ──read──▶ dataclass ──to_plain──▶ mapping ──dump_yaml, write_json──▶ file
    file ──load──▶ dataclass                         dataclass built in Python ──check, in its __post_init__──▶ as read

Example:
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Size:
    ...     width: PositiveInt = 1
    ...     def __post_init__(self) -> None:
    ...         check(self)
    >>> read(Size, {"width": 3})
    Size(width=3)
    >>> read(Size, {"widht": 3}, where="size")
    Traceback (most recent call last):
    ...
    sensitune.errors.ConfigError: `size.widht` is not a setting. The closest one is `size.width`.
"""

from sensitune._schema._documents import (
    dump_yaml,
    parse_json,
    parse_yaml,
    read_json,
    read_json_lines,
    read_yaml,
    write_json,
)
from sensitune._schema._mistakes import shorten, show_name, show_reason
from sensitune._schema._read import check, load, read, to_plain
from sensitune._schema._types import (
    AtLeastOne,
    ImageSide,
    NonEmptyText,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Rule,
    Seed,
    Share,
    UnitInterval,
)

__all__ = [
    "AtLeastOne",
    "ImageSide",
    "NonEmptyText",
    "NonNegative",
    "NonNegativeInt",
    "Positive",
    "PositiveInt",
    "Rule",
    "Seed",
    "Share",
    "UnitInterval",
    "check",
    "dump_yaml",
    "load",
    "parse_json",
    "parse_yaml",
    "read",
    "read_json",
    "read_json_lines",
    "read_yaml",
    "shorten",
    "show_name",
    "show_reason",
    "to_plain",
    "write_json",
]
