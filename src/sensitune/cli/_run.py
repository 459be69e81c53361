"""``sensitune run``: all stages on a model and a folder of images."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from sensitune.cli._arguments import asked_run
from sensitune.cli._console import make_console, reporting, show_path
from sensitune.report import (
    ComparisonRow,
    Table,
    TrialRow,
    allocation_table,
    comparison_table,
    trials_table,
    write_report,
)
from sensitune.runs import Run, RunFolder, joined_processes, read_choice, stability_of

DESCRIPTION = """Tune a pretrained vision model on your own images, under a budget of trainable parameters.

Scores every parameter on the first training batches, decides where the budget goes, trains, and tests. Everything is
written to the run folder; the same command goes on where it stopped."""


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    with (
        asked_run(arguments, command="run", description=DESCRIPTION) as asked,
        joined_processes(asked.config.compute.device) as processes,
    ):
        console = make_console(quiet=asked.quiet or asked.json)
        with RunFolder(asked.folder, asked.config).writing():
            with reporting(console) as reporter:
                run = Run.open(asked.folder, asked.config, reporter=reporter)
                run.train()
            processes.first(lambda: _show(console, run))
            if asked.json:
                processes.first(lambda: _write_json(run))


def _show(console: Console, run: Run) -> None:
    row, folder, allocation, result = comparison_row(run), run.folder, run.allocation(), run.train()
    trials = _trials(run)
    written = write_report(
        folder.path, allocation, sensitivity=run.known_sensitivity(), comparison=[row], trials=trials
    )
    if trials is not None:
        console.print(trials)
    if allocation is not None:
        console.print(allocation_table(allocation))
    if (stability := stability_of(run)) is not None:
        console.print(f"{stability}: chosen by either half of the batches too.")
    console.print(comparison_table([row], title="Result"))
    show_path(console, "adapter (last epoch)", folder.training.adapter)
    if result.chosen_epoch is not None:
        show_path(
            console, f"adapter (epoch {result.chosen_epoch}, chosen by validation)", folder.training.chosen_adapter
        )
    console.print(f"as a page for the browser: sensitune view {shlex.quote(str(folder.path))}", soft_wrap=True)
    console.print(f"result: {_in_words(row)}", soft_wrap=True)
    show_path(console, "report", written[0])
    console.print(f"predict: sensitune predict {shlex.quote(str(folder.training.adapter))} IMAGES", soft_wrap=True)


def _in_words(row: ComparisonRow) -> str:
    right = "trained, no test split" if row.last_accuracy is None else f"test accuracy {row.last_accuracy:.1%}"
    return (
        f"{right}; {row.trainable_params:,} parameters ({row.backbone_share:.2%} of the backbone) and the head trained"
    )


def result_of(run: Run) -> dict[str, Any]:
    """A finished run's result and where it lies, as ``--json`` writes it.

    Args:
        run: The run.

    Returns:
        Names and values that JSON knows; accuracies in [0, 1], times in seconds, None for what the run does not have.
    """
    row, result, folder = comparison_row(run), run.train(), run.folder
    chosen = None if result.chosen_epoch is None else str(folder.training.chosen_adapter)
    return {
        "method": row.method,
        "test_accuracy": result.test_accuracy_last,
        "test_accuracy_chosen": result.test_accuracy_chosen,
        "validation_accuracy": result.validation_accuracy_last,
        "last_epoch": result.last_epoch,
        "chosen_epoch": result.chosen_epoch,
        "trainable_params": row.trainable_params,
        "trainable_params_with_head": row.trainable_params_with_head,
        "training_seconds": result.seconds,
        "seed": result.seed,
        "device": result.device,
        "precision": result.precision,
        "folder": str(folder.path),
        "adapter": str(folder.training.adapter),
        "adapter_chosen": chosen,
        "report": str(folder.path / "report.md"),
    }


def _write_json(run: Run) -> None:
    sys.stdout.write(f"{json.dumps(result_of(run))}\n")


def _title(run: Run) -> str:
    own, settled = run.config.method, run.settled
    title = settled.method.title(settled.allocation)
    return title if settled.method is own else f"{own.label}: {title}"


def _trials(run: Run) -> Table[TrialRow] | None:
    choice = read_choice(run)
    if choice is None:
        return None
    rows = [
        TrialRow(each.candidate, each.rung, each.epochs, each.steps, each.validation_accuracy, each.outcome)
        for each in choice.trials
    ]
    rows += [TrialRow(name, None, None, None, None, f"not tried: {why}") for name, why in choice.left_out.items()]
    if not rows:
        return None
    return trials_table(rows, full_runs=choice.full_runs)


def comparison_row(run: Run) -> ComparisonRow:
    """A finished run as a row of the report's table."""
    result, cost = run.train(), run.origin()
    return ComparisonRow(
        method=_title(run),
        trainable_params=cost.trainable_params,
        trainable_params_with_head=cost.trainable_params + cost.head_params,
        backbone_share=cost.trainable_params / cost.backbone_params,
        last_accuracy=result.test_accuracy_last,
        chosen_accuracy=result.test_accuracy_chosen,
        seconds=result.seconds,
        seeds=(result.seed,),
    )
