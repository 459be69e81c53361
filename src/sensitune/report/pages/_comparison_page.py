"""Two or more allocations side by side: what each reached, where each puts its parameters, and what differs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from sensitune.allocation import Allocation, SiteRow, overlap
from sensitune.errors import ArgumentError
from sensitune.report._comparison import ComparisonRow
from sensitune.report._table import show_seconds
from sensitune.report.pages._charts import accuracy_chart, map_chart
from sensitune.report.pages._file import need_page, write_html
from sensitune.report.pages._intervals import share_interval
from sensitune.report.pages._sites import axes_of, describe_sites

_CHARTS = ("methods", "accuracy")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One of those that are laid side by side.

    Attributes:
        result: What it is called, what it trains and, if it was measured, what it reached.
        allocation: What it tunes; None if its method places nothing.
        num_test_images: How many images the accuracy was measured on; gives the interval.
        settings: Dotted name of a setting -> its value in words.
    """

    result: ComparisonRow
    allocation: Allocation | None
    num_test_images: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ComparisonPage:
    """What a page that compares shows.

    Attributes:
        title: What stands above it.
        entries: At least two, each called something else; one at least tunes something.
        command: What writes the page again.

    Raises:
        ArgumentError: If they are none of this.
    """

    title: str
    entries: Sequence[Compared]
    command: str = ""

    def __post_init__(self) -> None:
        labels = [each.result.method for each in self.entries]
        if len(labels) < 2 or len(set(labels)) < len(labels):
            named = ", ".join(labels) or "none"
            raise ArgumentError(f"A comparison needs at least two entries, each of its own name. Got {named}.")
        if not any(each.allocation and each.allocation.trainable_params for each in self.entries):
            raise ArgumentError(f"None of {', '.join(labels)} places anything, so there is nothing to see.")


def write_comparison_page(path: str | os.PathLike[str], page: ComparisonPage) -> Path:
    """Write a comparison as one HTML file that asks nothing of a network.

    Args:
        path: Where to; replaced if it is there.
        page: What to show.

    Returns:
        The path.

    Raises:
        MissingPackageError: If the extra ``page`` is not installed.
    """
    need_page()
    placed = [
        (each.result.method, each.allocation)
        for each in page.entries
        if each.allocation is not None and each.allocation.trainable_params
    ]
    return write_html(
        path,
        "comparison",
        _data(page, placed),
        page=page,
        results=[_result(each) for each in page.entries],
        pairs=[_pair(*one, *other) for one, other in combinations(placed, 2)],
        settings=_differing_settings(page.entries),
    )


def _data(page: ComparisonPage, placed: Sequence[tuple[str, Allocation]]) -> dict[str, Any]:
    """What the page's script reads."""
    tables = [allocation.table() for _, allocation in placed]
    sites = list({row.site: row for table in tables for row in table}.values())
    blocks, operations = axes_of(sites)
    numbers = {row.site: number for number, row in enumerate(sites)}
    variants: dict[str, list[object]] = {}
    measured = [_point(each, place) for place, each in enumerate(page.entries) if each.result.last_accuracy is not None]
    return {
        "sites": describe_sites(sites),
        "blocks": blocks,
        "operations": operations,
        "entries": [
            {"label": label, "rows": _rows(allocation, table, numbers, variants)}
            for (label, allocation), table in zip(placed, tables, strict=True)
        ],
        "map": map_chart(blocks, operations),
        "difference": map_chart(blocks, operations, signed=True),
        "accuracies": measured,
        "charts": {name: accuracy_chart(params=name == "accuracy", lines=len(measured)) for name in _CHARTS}
        if len(measured) > 1
        else {},
    }


def _rows(
    allocation: Allocation, table: Sequence[SiteRow], numbers: Mapping[str, int], variants: dict[str, list[object]]
) -> list[list[Any]]:
    """What is tuned as ``[site, how, parameters, rank, variant]``: whoever does the same at a site has its variant."""
    rows: list[list[Any]] = []
    for row in table:
        if not row.params:
            continue
        rank, indices = allocation.structured.get(row.site, 0), allocation.sparse.get(row.site)
        which = None if indices is None else hashlib.sha256(indices.numpy().tobytes()).digest()
        known, what = variants.setdefault(row.site, []), (row.tuning, row.params, rank, which)
        if what not in known:
            known.append(what)
        rows.append([numbers[row.site], row.tuning, row.params, rank, known.index(what)])
    return rows


def _interval(entry: Compared) -> tuple[float, float] | None:
    accuracy = entry.result.last_accuracy
    return None if accuracy is None or not entry.num_test_images else share_interval(accuracy, entry.num_test_images)


def _point(entry: Compared, place: int) -> dict[str, Any]:
    assert entry.result.last_accuracy is not None
    point = {
        "label": entry.result.method,
        "place": place,
        "params": entry.result.trainable_params,
        "percent": 100 * entry.result.last_accuracy,
        "interval": "–",
    }
    if (interval := _interval(entry)) is None:
        return point
    low, high = (100 * end for end in interval)
    return point | {"low": low, "high": high, "interval": f"{low:.1f} to {high:.1f}"}


def _result(entry: Compared) -> list[str]:
    result, allocation, interval = entry.result, entry.allocation, _interval(entry)
    placed = ["places nothing", "–", "–"]
    if allocation is not None:
        modules = f"{len(allocation.structured):,} × {allocation.module_label}" if allocation.structured else "none"
        placed = [modules, f"{len(allocation.vectors):,}", f"{allocation.sparse_params:,}"]
    return [
        result.method,
        f"{result.trainable_params:,}",
        f"{result.backbone_share:.2%}",
        *placed,
        "–" if result.last_accuracy is None else f"{result.last_accuracy:.1%}",
        "–" if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}",
        "–" if result.seconds is None else show_seconds(result.seconds),
    ]


def _pair(one: str, first: Allocation, other: str, second: Allocation) -> list[str]:
    shared = overlap(first, second)
    return [
        one,
        other,
        *(f"{count:,}" for count in (shared.modules, *shared.modules_alone, shared.values, *shared.values_alone)),
    ]


def _differing_settings(entries: Sequence[Compared]) -> list[list[str]]:
    """Name and values of every setting that is not the same for all who have settings at all."""
    known = [each.settings for each in entries if each.settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    differing = [name for name in names if len({settings.get(name, "–") for settings in known}) > 1]
    return [[name, *(each.settings.get(name, "–") for each in entries)] for name in differing]
