"""``sensitune train``: the third stage alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro

from sensitune.allocation import Allocation
from sensitune.cli._arguments import load_run, parse
from sensitune.cli._console import make_console, reporting, show_path
from sensitune.cli._run import comparison_row
from sensitune.report import comparison_table
from sensitune.runs import DeviceName, run_train


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(train, arguments, command="train")


def train(run: tyro.conf.Positional[Path], /, *, device: DeviceName | None = None) -> None:
    """Train what a run's allocation says, and the head; an interrupted training goes on from its last epoch.

    Args:
        run: Run folder, after `sensitune allocate`.
        device: Where it runs; the run's own setting by default.
    """
    folder = load_run(run, device)
    console = make_console()
    with reporting(console) as reporter:
        result = run_train(folder, reporter=reporter)
    row = comparison_row(folder, Allocation.load(folder.allocation), result)
    console.print(comparison_table([row], title="Result"))
    show_path(console, "adapter", folder.training.adapter)
