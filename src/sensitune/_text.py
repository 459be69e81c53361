"""Text from outside, for each kind of output: shown as it is written, never interpreted, and always possible to write.

Names of files, classes, tasks and methods are chosen by others. `visible` is for terminals and messages, `csv_cell` for
files that a spreadsheet may open; `sensitune._markdown` is for pages, `sensitune.report` has LaTeX.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

# Controls, halves of characters, separators of lines; the marks that turn the direction of writing hide what a name is.
_HIDDEN_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
_TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# What a spreadsheet takes for the start of a formula.
_FORMULA = ("=", "+", "-", "@")


def visible(text: object) -> str:
    """A text in which everything that a terminal would obey is escaped, as Python writes it.

    Args:
        text: Of any origin; a path's bytes that are not UTF-8 are shown as bytes.

    Returns:
        A text on one line that any terminal and any UTF-8 file can take.
    """
    return "".join(_escaped(each) if _is_hidden(each) else each for each in str(text))


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: not one of bytes that are not."""
    return not any(unicodedata.category(each) == "Cs" for each in name)


def csv_cell(value: object) -> object:
    """A cell of a CSV file: text that a spreadsheet would compute is quoted with an apostrophe.

    Args:
        value: Numbers and None stay as they are, several values are joined by spaces.

    Returns:
        What to hand to `csv.writer`.
    """
    if value is None or isinstance(value, (int, float)):
        return value
    several = isinstance(value, Sequence) and not isinstance(value, str)
    text = visible(" ".join(map(str, value)) if several else value)  # type: ignore[call-overload]
    start = unicodedata.normalize("NFKC", text.lstrip()[:1])  # wide forms are computed too
    return f"'{text}" if start in _FORMULA and not _is_number(text) else text


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN_CATEGORIES or character in _TURNING


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
