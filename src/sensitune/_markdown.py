"""Pieces of Markdown pages in which nothing from outside is markup."""

from __future__ import annotations

import re
from collections.abc import Sequence


def escape(text: object) -> str:
    """A name from outside, such as a class's, so that it shows as it is and stays on its line.

    Args:
        text: The name.

    Returns:
        Markdown.
    """
    escaped = re.sub(r"([\\`*_{}\[\]<>#|!~&$:@])", r"\\\1", _on_one_line(text))
    return re.sub(r"\bwww\.", r"www\\.", escaped, flags=re.IGNORECASE)


def code(text: object) -> str:
    """A name in a code span, also within a table.

    Args:
        text: The name.

    Returns:
        Markdown.
    """
    plain = _on_one_line(text)
    fence = "`" * (max(map(len, re.findall("`+", plain)), default=0) + 1)
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{plain}{space}{fence}".replace("|", "\\|")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[str] = ()) -> str:
    """A table.

    Args:
        headings: Name of every column.
        rows: Cells, in Markdown.
        numeric: Columns that are set to the right.

    Returns:
        Its lines.
    """
    rule = ["---:" if heading in numeric else "---" for heading in headings]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def _on_one_line(text: object) -> str:
    return " ".join("".join(each if each.isprintable() else " " for each in str(text)).split())
