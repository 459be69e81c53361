"""What the terminal shows: bars while it works, tables when it is done; no bars where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sensitune._processes import Processes
from sensitune._text import visible
from sensitune.runs import Reporter, Silent


class PlainConsole(Console):
    """Prints text as it stands: nothing in it is markup, an emoji's name or an order to the terminal."""

    def __init__(self, *, width: int | None = None, quiet: bool = False) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, width=width, quiet=quiet)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print lines of text, or what rich can draw.

        Args:
            *objects: What to print.
            **options: rich's.
        """
        shown = ["\n".join(map(visible, each.split("\n"))) if isinstance(each, str) else each for each in objects]
        super().print(*shown, **options)


class BarReporter:
    """A line per stage, with a bar while it is under way."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("", total=None, note="", visible=False)

    def stage(self, title: str) -> None:
        """Start the bar of a stage.

        Args:
            title: What the stage does.
        """
        self.progress.console.print(title)
        self.progress.reset(self.task, total=None, note="", visible=False)

    def step(self, done: int, total: int | None, note: str = "") -> None:
        """Move the bar.

        Args:
            done: Steps done.
            total: Steps in all; None if unknown.
            note: Shown behind the bar.
        """
        self.progress.update(self.task, completed=done, total=total, note=visible(note), visible=done != total)


class LineReporter:
    """A line per stage and per epoch, where there is no terminal to draw on."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.note = ""

    def stage(self, title: str) -> None:
        """Name the stage.

        Args:
            title: What the stage does.
        """
        self.console.print(title)

    def step(self, done: int, total: int | None, note: str = "") -> None:
        """Repeat the note when it changes.

        Args:
            done: Steps done.
            total: Steps in all; None if unknown.
            note: What there is to say.
        """
        if note and note != self.note:
            self.console.print(f"  {note}")
            self.note = note


@contextmanager
def reporting(console: Console, *, always: bool = False) -> Iterator[Reporter]:
    """A reporter for a console.

    Args:
        console: Where to draw.
        always: Say something even where the console is no terminal.

    Yields:
        Bars on a terminal; elsewhere lines if `always`, else nothing.
    """
    if console.quiet:
        yield Silent()
        return
    if not console.is_terminal:
        yield LineReporter(console) if always else Silent()
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    note = TextColumn("{task.fields[note]}", markup=False)
    with Progress(*columns, note, console=console, transient=True) as progress:
        yield BarReporter(progress)


def make_console(*, quiet: bool = False) -> Console:
    """Standard output, of the first process alone; tables are not squeezed where it is no terminal.

    Args:
        quiet: Whether nothing is to be shown there.

    Returns:
        The console.
    """
    quiet = quiet or not Processes.found().is_first
    console = PlainConsole(quiet=quiet)
    return console if console.is_terminal else PlainConsole(width=160, quiet=quiet)


def show_path(console: Console, what: str, path: Path) -> None:
    """One line that says where something is, never wrapped so that it can be copied."""
    console.print(f"{what}: {path}", soft_wrap=True)


def warn(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"{visible(text)}\n")
