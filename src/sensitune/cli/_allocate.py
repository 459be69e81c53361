"""``sensitune allocate``: the second stage alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro

from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console, reporting, show_path
from sensitune.report import allocation_table
from sensitune.runs import Run, RunFolder, joined_processes


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(allocate, arguments, command="allocate")


def allocate(run: tyro.conf.Positional[Path], /) -> None:
    """Decide what a run tunes under its budget, from the scores in its folder.

    Args:
        run: Run folder, from `sensitune sensitivity` or `sensitune run`; scores that are missing are made first.
    """
    with joined_processes(RunFolder.load(run).config.compute.device):
        console = make_console()
        with reporting(console) as reporter:
            opened = Run.load(run, reporter=reporter)
            with opened.folder.writing():
                allocation = opened.allocation()
        if allocation is None:
            console.print(f"The method {opened.config.method.name} places nothing; `sensitune train {run}` goes on.")
            return
        console.print(allocation_table(allocation))
        show_path(console, "allocation", opened.folder.allocation)
