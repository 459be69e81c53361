"""``sensitune train``: the third stage alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro

from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console, reporting, show_path
from sensitune.cli._run import comparison_row
from sensitune.report import comparison_table
from sensitune.runs import DeviceName, Run, RunFolder, joined_processes


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(train, arguments, command="train")


def train(run: tyro.conf.Positional[Path], /, *, device: DeviceName | None = None) -> None:
    """Train what a run's allocation says, and the head; an interrupted training goes on from its last epoch.

    Args:
        run: Run folder; what an earlier stage has not left there yet is made first.
        device: Where it runs; the run's own setting by default.
    """
    with joined_processes(RunFolder.load(run, device=device).config.compute.device) as processes:
        console = make_console()
        with reporting(console) as reporter:
            opened = Run.load(run, device=device, reporter=reporter)
            with opened.folder.writing():
                opened.train()
        row = processes.first(lambda: comparison_row(opened))
        console.print(comparison_table([row], title="Result"))
        show_path(console, "adapter", opened.folder.training.adapter)
