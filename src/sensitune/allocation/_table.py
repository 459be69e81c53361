"""An allocation as rows and as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sensitune.allocation._cost import module_params

if TYPE_CHECKING:
    from sensitune.allocation._allocation import Allocation

_COLUMNS = ("operation", "sites", "structured", "whole vectors", "sparse entries", "parameters")


def allocation_rows(allocation: Allocation) -> list[dict[str, Any]]:
    """One row per always-trained parameter and per ranked site, with what it costs; see `Allocation.table`."""
    return [*_always_rows(allocation), *_site_rows(allocation)]


def format_summary(allocation: Allocation) -> str:
    """The rows added up by operation, aligned for a terminal, and the totals below; see `Allocation.summary`."""
    rows = allocation_rows(allocation)
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    body = [(operation, *_totals([row for row in rows if row["operation"] == operation])) for operation in operations]
    lines = _align([_COLUMNS, *_cells(body), *_cells([("total", *_totals(rows))])])
    rule = "-" * len(lines[0])
    return "\n".join([_title(allocation), "", lines[0], rule, *lines[1:-1], rule, lines[-1], "", *_counts(allocation)])


def _always_rows(allocation: Allocation) -> Iterator[dict[str, Any]]:
    for name in allocation.always_trained:
        shape = torch.Size(allocation.outline.always_trained[name])
        yield _row(name, None, name.rpartition(".")[2], "tensor", "always", shape.numel())


def _site_rows(allocation: Allocation) -> Iterator[dict[str, Any]]:
    structured, vectors = set(allocation.structured), set(allocation.vectors)
    for site in allocation.outline.sites:
        tuning, params = "frozen", 0
        if site.id in structured:
            tuning, params = "structured", module_params(site, allocation.structured_type, allocation.rank_of(site.id))
        elif site.id in vectors:
            tuning, params = "vector", site.numel
        elif site.id in allocation.sparse:
            tuning, params = "sparse", allocation.sparse[site.id].numel()
        yield _row(site.id, site.block, site.operation, site.kind, tuning, params)


def _row(site: str, block: int | None, operation: str, kind: str, tuning: str, params: int) -> dict[str, Any]:
    return {"site": site, "block": block, "operation": operation, "kind": kind, "tuning": tuning, "params": params}


def _totals(rows: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    def of(tuning: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["tuning"] == tuning]

    sparse = sum(row["params"] for row in of("sparse"))
    return len(rows), len(of("structured")), len(of("vector")), sparse, sum(row["params"] for row in rows)


def _cells(rows: Sequence[tuple[Any, ...]]) -> list[tuple[str, ...]]:
    return [(str(row[0]), *(f"{value:,}" if value else "·" for value in row[1:])) for row in rows]


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]

    def line(row: tuple[str, ...]) -> str:
        return "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])

    return [line(row) for row in rows]


def _title(allocation: Allocation) -> str:
    module = f"{allocation.structured_type}, {allocation.rank_label}" if allocation.structured_type else "no modules"
    asked = f", budget {allocation.budget:,}" if allocation.budget is not None else ""
    tau = f", tau {allocation.tau:,}" if allocation.tau is not None else ""
    return f"{allocation.method} allocation: {module}{asked}{tau}"


def _counts(allocation: Allocation) -> list[str]:
    without = allocation.trainable_params
    share = without / allocation.outline.backbone_params if allocation.outline.backbone_params else 0.0
    head = ", ".join(allocation.head) or "none"
    return [
        f"Trainable parameters: {without:,} without the head ({share:.2%} of the backbone), "
        f"{without + allocation.head_params:,} with it (head: {head}, {allocation.head_params:,})."
    ]
