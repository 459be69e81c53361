"""Where a budget went, added up by operation, by block, or by kind of site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from sensitune.allocation import Allocation, GroupRow, SiteRow, group_rows
from sensitune.errors import ArgumentError
from sensitune.report._counts import block_name
from sensitune.report._table import Column, Table, show_count, show_share

Grouping: TypeAlias = Literal["operation", "block", "kind", "site"]

_GROUP: dict[Grouping, Callable[[SiteRow], str]] = {
    "operation": lambda row: row.operation,
    "block": block_name,
    "kind": lambda row: row.kind,
    "site": lambda row: row.site,
}


def allocation_table(allocation: Allocation, *, by: Grouping = "operation") -> Table[GroupRow]:
    """Add an allocation up by group; the class token and its kin are groups of their own when grouped by operation.

    Args:
        allocation: What to show.
        by: ``"operation"``, ``"block"``, ``"kind"``, or ``"site"`` (one row each).

    Returns:
        One `GroupRow` per group in the model's order, and the total.

    Raises:
        ArgumentError: If `by` is none of these.
    """
    if by not in _GROUP:
        raise ArgumentError(f"`by` must be one of {', '.join(map(repr, _GROUP))}. Got {by!r}.")
    entries = allocation.table()
    if by == "block":  # what is outside the blocks comes last, wherever the model holds it
        entries = sorted(entries, key=lambda row: (row.block is None, row.block or 0))
    params = allocation.trainable_params
    return Table(
        title=f"Trainable parameters by {by}",
        columns=(Column("group", by, numeric=False), *_COLUMNS),
        rows=tuple(GroupRow.of(group, rows, params) for group, rows in group_rows(entries, _GROUP[by]).items()),
        total=GroupRow.of("total", entries, params),
        caption=_caption(allocation),
    )


_COLUMNS = (
    Column("sites", "sites", show_count),
    Column("structured", "modules", show_count),
    Column("vectors", "whole\nvectors", show_count),
    Column("sparse_params", "sparse\nvalues", show_count),
    Column("params", "parameters", show_count),
    Column("share", "share", show_share),
)


def _caption(allocation: Allocation) -> str:
    modules = f"Modules: {allocation.module_label}. " if allocation.structured else ""
    return f"{modules}The head ({allocation.head_params:,} parameters) is trained too and not counted."
