"""Where a budget went, added up by operation, by block, or by kind of site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sensitune.allocation import Allocation
from sensitune.errors import ArgumentError
from sensitune.report._table import Column, Table, show_count, show_share

Grouping: TypeAlias = Literal["operation", "block", "kind", "site"]

_GROUP: dict[str, Callable[[dict[str, Any]], str]] = {
    "operation": lambda row: row["operation"],
    "block": lambda row: "outside" if row["block"] is None else str(row["block"]),
    "kind": lambda row: row["kind"],
    "site": lambda row: row["site"],
}


@dataclass(frozen=True, slots=True)
class AllocationRow:
    """What one group of sites got.

    Attributes:
        group: The operation, block, kind or site; blocks count from 0, and ``"outside"`` is what belongs to none.
        sites: Number of sites in the group, tuned or not.
        structured: Number of sites with a LoRA or an Adapter.
        vectors: Number of vectors tuned whole.
        sparse_sites: Number of sites of which single scalars are trained.
        sparse_params: Number of those scalars.
        params: Trainable parameters of the group.
        share: `params` as a fraction of all trainable parameters without the head.
    """

    group: str
    sites: int
    structured: int
    vectors: int
    sparse_sites: int
    sparse_params: int
    params: int
    share: float


def allocation_table(allocation: Allocation, *, by: Grouping = "operation") -> Table[AllocationRow]:
    """Add an allocation up by group; the class token and its kin are groups of their own when grouped by operation.

    Args:
        allocation: What to show.
        by: ``"operation"``, ``"block"``, ``"kind"``, or ``"site"`` (one row each).

    Returns:
        One `AllocationRow` per group in the model's order, and the total.

    Raises:
        ArgumentError: If `by` is none of these.
    """
    if by not in _GROUP:
        raise ArgumentError(f"`by` must be one of {', '.join(map(repr, _GROUP))}. Got {by!r}.")
    entries = allocation.table()
    if by == "block":  # what is outside the blocks comes last, wherever the model holds it
        entries = sorted(entries, key=lambda row: (row["block"] is None, row["block"] or 0))
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(_GROUP[by](entry), []).append(entry)
    trainable = allocation.trainable_params
    return Table(
        title=f"Trainable parameters by {by}",
        columns=(Column("group", by, numeric=False), *_COLUMNS),
        rows=tuple(_row(group, members, trainable) for group, members in groups.items()),
        total=_row("total", entries, trainable),
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


def _row(group: str, entries: Sequence[dict[str, Any]], trainable: int) -> AllocationRow:
    def tuned(how: str) -> list[int]:
        return [entry["params"] for entry in entries if entry["tuning"] == how]

    params = sum(entry["params"] for entry in entries)
    sparse = tuned("sparse")
    return AllocationRow(
        group=group,
        sites=len(entries),
        structured=len(tuned("structured")),
        vectors=len(tuned("vector")),
        sparse_sites=len(sparse),
        sparse_params=sum(sparse),
        params=params,
        share=params / trainable if trainable else 0.0,
    )


def _caption(allocation: Allocation) -> str:
    names = {"lora": "LoRA", "adapter": "Adapter", None: ""}
    module = (
        f"Modules: {names[allocation.structured_type]} of {allocation.rank_label}. " if allocation.structured else ""
    )
    return f"{module}The head ({allocation.head_params:,} parameters) is trained too and not counted."
