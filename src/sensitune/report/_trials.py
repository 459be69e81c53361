"""What was tried before a method was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sensitune.report._table import Column, Table, show_accuracy


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A candidate's short training.

    Attributes:
        candidate: What a reader calls it.
        rung: Which round it was in, from 1; None if it was not tried.
        epochs: Passes over the training split.
        steps: The same in steps of the optimiser.
        validation_accuracy: What it reached on the validation split, from 0 to 1.
        outcome: What became of it, and why.
    """

    candidate: str
    rung: int | None
    epochs: int | None
    steps: int | None
    validation_accuracy: float | None
    outcome: str


def trials_table(rows: Sequence[TrialRow], *, full_runs: float) -> Table[TrialRow]:
    """Candidates in the order in which they were tried.

    Args:
        rows: One for each candidate and round, at least one.
        full_runs: What it cost together with the training of the chosen one, in trainings of that length.

    Returns:
        The table.
    """
    caption = f"Accuracy on the validation split; {full_runs:.2f} full runs of training, the chosen one's among them."
    return Table(title="Candidates tried", columns=_COLUMNS, rows=tuple(rows), caption=caption)


_COLUMNS = (
    Column("candidate", "candidate", numeric=False),
    Column("rung", "round"),
    Column("epochs", "epochs"),
    Column("steps", "steps", "{:,}".format),
    Column("validation_accuracy", "validation", show_accuracy),
    Column("outcome", "outcome", numeric=False),
)
