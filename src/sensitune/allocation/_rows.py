"""An allocation as rows: one per site, or added up by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sensitune.sites import Kind

Tuning: TypeAlias = Literal["structured", "vector", "sparse", "always", "frozen"]

_HEADINGS = ("operation", "sites", "structured", "whole vectors", "sparse entries", "parameters")


@dataclass(frozen=True, slots=True)
class SiteRow:
    """What one site got.

    Attributes:
        site: Id of the site, or name of the parameter that is always trained.
        block: Index of its block; None outside the blocks.
        operation: What it does.
        kind: ``"matrix"``, ``"vector"`` or ``"tensor"``.
        tuning: How it is tuned; ``"frozen"`` if it is not.
        params: Its trainable parameters.
        size: Scalars that it holds in all.
    """

    site: str
    block: int | None
    operation: str
    kind: Kind
    tuning: Tuning
    params: int
    size: int


@dataclass(frozen=True, slots=True)
class GroupRow:
    """What a group of sites got.

    Attributes:
        group: What the sites have in common, for example their operation.
        sites: How many there are, tuned or not.
        structured: How many of them have a LoRA or an Adapter.
        vectors: How many of them are vectors tuned whole.
        sparse_sites: Of how many of them single scalars are trained.
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

    @classmethod
    def of(cls, group: str, rows: Sequence[SiteRow], trainable_params: int) -> GroupRow:
        """The rows of a group, added up; `trainable_params` is what all groups have together."""
        tunings, params = [row.tuning for row in rows], sum(row.params for row in rows)
        return cls(
            group=group,
            sites=len(rows),
            structured=tunings.count("structured"),
            vectors=tunings.count("vector"),
            sparse_sites=tunings.count("sparse"),
            sparse_params=sum(row.params for row in rows if row.tuning == "sparse"),
            params=params,
            share=params / trainable_params if trainable_params else 0.0,
        )


def group_rows(rows: Sequence[SiteRow], name: Callable[[SiteRow], str]) -> dict[str, list[SiteRow]]:
    """The rows by what they have in common.

    Args:
        rows: From `Allocation.table`.
        name: Says which group a row belongs to.

    Returns:
        Group -> its rows; groups and rows are in the order in which they first occur.
    """
    groups: dict[str, list[SiteRow]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    return groups


def format_rows(rows: Sequence[SiteRow]) -> list[str]:
    """All rows of an allocation added up by operation, and the total, aligned for a terminal."""
    total = sum(row.params for row in rows)
    groups = group_rows(rows, lambda row: row.operation) | {"total": list(rows)}
    body = [_cells(GroupRow.of(group, members, total)) for group, members in groups.items()]
    heading, *lines, last = _align([_HEADINGS, *body])
    rule = "-" * len(heading)
    return [heading, rule, *lines, rule, last]


def _cells(row: GroupRow) -> tuple[str, ...]:
    counts = (row.sites, row.structured, row.vectors, row.sparse_params, row.params)
    return (row.group, *(f"{count:,}" if count else "·" for count in counts))


def _align(lines: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) for cells in lines]
