"""Methods side by side: what they train, what they reach, how long they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sensitune.allocation import Allocation
from sensitune.errors import ArgumentError
from sensitune.report._table import Column, Table, show_accuracy, show_seconds, show_share


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One method's result.

    Attributes:
        method: What a reader calls it, for example ``"SPT-LoRA"``.
        trainable_params: Trainable parameters, the head not counted.
        trainable_params_with_head: The same, the head counted.
        backbone_share: `trainable_params` as a fraction of the backbone's parameters.
        last_accuracy: Test accuracy after the last epoch, from 0 to 1; None if it was not measured.
        chosen_accuracy: Test accuracy of the epoch the validation split chose, from 0 to 1; None if not measured.
        seconds: Training time; None if it was not measured.
        seeds: The seeds that were run; with several, the accuracies and the time are their means.
        notes: Anything a reader must know.
    """

    method: str
    trainable_params: int
    trainable_params_with_head: int
    backbone_share: float
    last_accuracy: float | None = None
    chosen_accuracy: float | None = None
    seconds: float | None = None
    seeds: tuple[int, ...] = ()
    notes: str = ""

    @classmethod
    def of(
        cls,
        allocation: Allocation,
        *,
        method: str,
        last_accuracy: float | None = None,
        chosen_accuracy: float | None = None,
        seconds: float | None = None,
        seeds: Sequence[int] = (),
        notes: str = "",
    ) -> ComparisonRow:
        """A row whose parameter counts are the allocation's.

        Args:
            allocation: What the method trains.
            method: What a reader calls it.
            last_accuracy: Test accuracy after the last epoch, from 0 to 1.
            chosen_accuracy: Test accuracy of the epoch that validation chose, from 0 to 1.
            seconds: Training time.
            seeds: The seeds that were run.
            notes: Anything a reader must know.

        Returns:
            The row.
        """
        params = allocation.trainable_params
        return cls(
            method=method,
            trainable_params=params,
            trainable_params_with_head=params + allocation.head_params,
            backbone_share=params / allocation.outline.backbone_params,
            last_accuracy=last_accuracy,
            chosen_accuracy=chosen_accuracy,
            seconds=seconds,
            seeds=tuple(seeds),
            notes=notes,
        )


def comparison_table(rows: Sequence[ComparisonRow], *, title: str = "Methods compared") -> Table[ComparisonRow]:
    """Put methods side by side, in the order given.

    Args:
        rows: One per method and budget.
        title: What is compared.

    Returns:
        The table; its caption says how many seeds stand behind it. Columns that no row fills, and the seeds where they
        are the same for all, are not shown (but are in the CSV file).

    Raises:
        ArgumentError: If there are no rows.
    """
    if not rows:
        raise ArgumentError("A comparison needs at least one row. Got none.")
    columns = tuple(column for column in _COLUMNS if _is_shown(column.field, rows))
    return Table(title=title, columns=columns, rows=tuple(rows), caption=f"Test accuracy; {describe_seeds(rows)}.")


def describe_seeds(rows: Sequence[ComparisonRow]) -> str:
    """How many runs stand behind the rows, in words.

    Args:
        rows: The rows that are shown together.

    Returns:
        For example ``"one seed (0) per method"`` or ``"mean of seeds 0, 1, 2"``.
    """
    seeds = {row.seeds for row in rows}
    if len(seeds) > 1:
        return "seeds differ between rows"
    common = next(iter(seeds), ())
    if not common:
        return "seeds not recorded"
    if len(common) == 1:
        return f"one seed ({common[0]}) per method"
    return f"mean of seeds {', '.join(map(str, common))}"


def _show_seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "–"


_COLUMNS = (
    Column("method", "method", numeric=False),
    Column("trainable_params", "trainable", "{:,}".format),
    Column("trainable_params_with_head", "with head", "{:,}".format),
    Column("backbone_share", "of\nbackbone", show_share),
    Column("last_accuracy", "last\nepoch", show_accuracy),
    Column("chosen_accuracy", "chosen on\nvalidation", show_accuracy),
    Column("seconds", "time", show_seconds),
    Column("seeds", "seed", _show_seeds),
    Column("notes", "notes", numeric=False),
)


def _is_shown(field: str, rows: Sequence[ComparisonRow]) -> bool:
    values = {getattr(row, field) for row in rows}
    if field == "seeds":
        return len(values) > 1
    return not values <= {None, ""}
