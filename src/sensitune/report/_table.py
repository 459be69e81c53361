"""A table as plain data, and the three ways to show it."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sensitune._files import atomic_write
from sensitune._markdown import escape, table
from sensitune._text import csv_cell
from sensitune.report._terminal import terminal_text

if TYPE_CHECKING:
    import rich.table
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        field: Name of the row's attribute.
        heading: What a reader sees above it; a line break keeps it narrow in a terminal.
        show: Turns a value into text; None is shown as a dash without asking it.
        numeric: Whether it is aligned to the right.
    """

    field: str
    heading: str
    show: Callable[[Any], str] = str
    numeric: bool = True

    def text(self, row: object) -> str:
        """The row's value as a reader sees it."""
        value = getattr(row, self.field)
        return "–" if value is None else self.show(value)


@dataclass(frozen=True, slots=True)
class Table(Generic[Row]):
    """Rows of one dataclass, ready for the terminal, for a file and for a page.

    ``rich.print(table)`` draws it; `to_markdown` and `to_csv` write it.

    Attributes:
        title: What the table shows.
        columns: Which attributes of a row are shown, and how.
        rows: The data, at least one row.
        total: A row of sums shown below the others; not in a CSV file.
        caption: What a reader must know to read it right.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    total: Row | None = None
    caption: str = ""

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write every attribute of the rows: shares as fractions, several values of a cell joined by spaces.

        Text that a spreadsheet would compute stands behind an apostrophe.

        Args:
            path: The file to write; its folder is created.
        """
        names = [field.name for field in fields(self.rows[0])]
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([csv_cell(getattr(row, name)) for name in names] for row in self.rows)

    def to_markdown(self) -> str:
        """The table for a page, without its title; the caption stands below."""
        headings = [escape(column.heading) for column in self.columns]
        body = [[escape(text) for text in self._texts(row)] for row in self.rows]
        total = [[f"**{escape(text)}**" for text in self._texts(self.total)]] if self.total is not None else []
        numeric = [heading for heading, column in zip(headings, self.columns, strict=True) if column.numeric]
        drawn = table(headings, [*body, *total], numeric=numeric)
        return f"{drawn}\n\n{self.caption}" if self.caption else drawn

    def __rich__(self) -> rich.table.Table:
        """The table for a terminal."""
        from rich import box
        from rich.table import Table as RichTable

        title = terminal_text(self.title, "bold")
        caption = terminal_text(self.caption, "table.caption") if self.caption else None
        drawn = RichTable(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
        drawn.title_justify, drawn.caption_justify = "left", "left"
        for column in self.columns:
            drawn.add_column(column.heading, justify="right" if column.numeric else "left", no_wrap=column.numeric)
        for index, row in enumerate(self.rows):
            drawn.add_row(*map(terminal_text, self._texts(row)), end_section=index == len(self.rows) - 1)
        if self.total is not None:
            drawn.add_row(*map(terminal_text, self._texts(self.total)), style="bold")
        return drawn

    def _texts(self, row: object) -> list[str]:
        return [column.text(row) for column in self.columns]


def show_count(value: int) -> str:
    """A number of things; nothing is a dot, so that the rest stands out."""
    return f"{value:,}" if value else "·"


def show_share(value: float) -> str:
    """A fraction in percent."""
    return f"{value:.2%}"


def show_accuracy(value: float) -> str:
    """A fraction in percent, as precise as accuracies are quoted."""
    return f"{value:.1%}"


def show_seconds(value: float) -> str:
    """A duration, in seconds below two minutes and in minutes above."""
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} min"
