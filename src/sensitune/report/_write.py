"""Everything this package shows of a run, written into its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensitune._files import atomic_write
from sensitune.allocation import Allocation
from sensitune.report._accuracy import figure_accuracy
from sensitune.report._allocation_table import allocation_table
from sensitune.report._bars import figure_by_block, figure_by_operation
from sensitune.report._comparison import ComparisonRow, comparison_table
from sensitune.report._heat_map import figure_heat_map
from sensitune.report._style import save_figure
from sensitune.report._table import Table
from sensitune.report._trials import TrialRow
from sensitune.sensitivity import Sensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    folder: str | os.PathLike[str],
    allocation: Allocation | None,
    *,
    sensitivity: Sensitivity | None = None,
    comparison: Sequence[ComparisonRow] = (),
    trials: Table[TrialRow] | None = None,
) -> list[Path]:
    """Write the tables and figures of a run: ``figures/*.{csv,png,svg}``, and ``report.md`` that shows them.

    Args:
        folder: The run folder; made if it is missing. Files of an earlier report are replaced.
        allocation: What was tuned; None of a method that places nothing, such as full fine-tuning.
        sensitivity: The scores behind it; with them and the allocation's `tau`, the sensitive parameters are drawn too.
        comparison: Results to show in a table; two or more with an accuracy are drawn as well.
        trials: What was tried before, of a run that chose its method.

    Returns:
        Every file written, ``report.md`` first.
    """
    figures = Path(folder) / "figures"
    tables = dict(_tables(allocation, comparison, trials))
    drawn = dict(_figures(allocation, sensitivity, comparison))
    written: list[Path] = []
    for name, table in tables.items():
        table.to_csv(figures / f"{name}.csv")
        written.append(figures / f"{name}.csv")
    for name, figure in drawn.items():
        written += save_figure(figure, figures / name)
    page = Path(folder) / "report.md"
    with atomic_write(page) as temporary:
        temporary.write_text(_page(tables, list(drawn)), encoding="utf-8")
    return [page, *written]


def _tables(
    allocation: Allocation | None, comparison: Sequence[ComparisonRow], trials: Table[TrialRow] | None
) -> Iterator[tuple[str, Table[Any]]]:
    if comparison:
        yield "comparison", comparison_table(comparison)
    if trials is not None:
        yield "trials", trials
    if allocation is not None:
        yield "allocation_by_operation", allocation_table(allocation, by="operation")
        yield "allocation_by_block", allocation_table(allocation, by="block")


def _figures(
    allocation: Allocation | None, sensitivity: Sensitivity | None, comparison: Sequence[ComparisonRow]
) -> Iterator[tuple[str, Figure]]:
    if sum(row.last_accuracy is not None for row in comparison) > 1:
        yield "accuracy", figure_accuracy(comparison)
    if allocation is None:
        return
    has_blocks = any(site.block is not None for site in allocation.outline.sites)
    if sensitivity is not None and allocation.tau:
        if has_blocks:
            yield "sensitive_heat_map", figure_heat_map(sensitivity, tau=allocation.tau)
        yield "sensitive_by_block", figure_by_block(sensitivity, tau=allocation.tau)
        yield "sensitive_by_operation", figure_by_operation(sensitivity, tau=allocation.tau)
    if allocation.trainable_params:
        if has_blocks:
            yield "trainable_heat_map", figure_heat_map(allocation)
        yield "trainable_by_block", figure_by_block(allocation)
        yield "trainable_by_operation", figure_by_operation(allocation)


_CAPTIONS = {
    "accuracy": "Test accuracy against trainable parameters.",
    "sensitive_heat_map": "Where the most sensitive parameters are, by block and operation.",
    "sensitive_by_block": "The most sensitive parameters by block, before their share of all parameters.",
    "sensitive_by_operation": "The most sensitive parameters by operation, before their share of all parameters.",
    "trainable_heat_map": "Where the trainable parameters are, by block and operation.",
    "trainable_by_block": "The trainable parameters by block.",
    "trainable_by_operation": "The trainable parameters by operation.",
}


def _page(tables: dict[str, Table[Any]], figures: Sequence[str]) -> str:
    parts = ["# Report"]
    for name, table in tables.items():
        parts += [f"## {table.title}", table.to_markdown(), f"As CSV: [{name}.csv](figures/{name}.csv)"]
    if figures:
        parts.append("## Figures")
    parts += [
        f"![{_CAPTIONS[name]}](figures/{name}.png)\n\n{_CAPTIONS[name]} [SVG](figures/{name}.svg)" for name in figures
    ]
    return "\n\n".join(parts) + "\n"
