"""``sensitune run``: all stages on a model and a folder of images."""

from __future__ import annotations

from collections.abc import Sequence

from sensitune.cli._arguments import parse_run
from sensitune.cli._console import make_console, reporting, show_path
from sensitune.report import ComparisonRow, allocation_table, comparison_table, write_report
from sensitune.runs import METHODS, Run

DESCRIPTION = """Tune a pretrained vision model on your own images, under a budget of trainable parameters.

Scores every parameter on the first training batches, decides where the budget goes, trains, and tests. Everything is
written to the run folder; the same command goes on where it stopped."""


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    asked = parse_run(arguments, command="run", description=DESCRIPTION)
    console = make_console()
    with reporting(console) as reporter:
        run = Run.open(asked.folder, asked.settings, reporter=reporter)
        result = run.train()
    row, folder = comparison_row(run), run.folder
    written = write_report(folder.path, run.allocation(), sensitivity=run.known_sensitivity(), comparison=[row])
    console.print(allocation_table(run.allocation()))
    console.print(comparison_table([row], title="Result"))
    show_path(console, "adapter (last epoch)", folder.training.adapter)
    if result.chosen_epoch is not None:
        show_path(
            console, f"adapter (epoch {result.chosen_epoch}, chosen by validation)", folder.training.chosen_adapter
        )
    show_path(console, "report", written[0])


def comparison_row(run: Run) -> ComparisonRow:
    """A finished run as a row of the report's table."""
    result = run.train()
    return ComparisonRow.of(
        run.allocation(),
        method=METHODS[run.config.method].label,
        last_accuracy=result.test_accuracy_last,
        chosen_accuracy=result.test_accuracy_chosen,
        seconds=result.seconds,
        seeds=(result.seed,),
    )
