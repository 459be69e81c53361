"""A sweep: the field's table, methods with intervals, accuracy against parameters."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensitune.report._task_table import TableRow, TaskTable
from sensitune.report.pages._charts import accuracy_chart
from sensitune.report.pages._file import need_page, write_html
from sensitune.report.pages._intervals import mean_interval, share_interval


@dataclass(frozen=True, kw_only=True)
class SweepPage:
    """What a sweep's page shows.

    Attributes:
        title: What stands above it.
        table: Its methods on its tasks.
        status: How far it has got, in a sentence.
        num_test_images: Task -> how many images it was tested on; gives the intervals of a single seed.
        failed: Run -> why it has no result.
        settings: The sweep's file.
        command: What writes the page again.
    """

    title: str
    table: TaskTable
    status: str = ""
    num_test_images: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""
    command: str = ""


def write_sweep_page(path: str | os.PathLike[str], page: SweepPage) -> Path:
    """Write a sweep's page as one HTML file that asks nothing of a network.

    Args:
        path: Where to; replaced if it is there.
        page: What to show.

    Returns:
        The path.

    Raises:
        MissingPackageError: If the extra ``page`` is not installed.
    """
    need_page()
    table = page.table
    has_params = any(row.trainable_params is not None for row in table.rows)
    data = {
        "columns": table.columns,
        "methods": [_method(page, row) for row in table.rows],
        "charts": {"methods": accuracy_chart(params=False, lines=len(table.rows))}
        | ({"accuracy": accuracy_chart(params=True)} if has_params else {}),
    }
    return write_html(
        path,
        "sweep",
        data,
        page=page,
        status=page.status,
        has_params=has_params,
        rows=[[row.label, *([_count(row)] if has_params else []), *table.texts(row)] for row in table.rows],
    )


def _count(row: TableRow) -> str:
    return "–" if row.trainable_params is None else f"{row.trainable_params:,}"


def _method(page: SweepPage, row: TableRow) -> dict[str, Any]:
    found = zip(page.table.by_seed(row), _weights(page.table), strict=True)
    columns = [_column(page, row, by_seed, weights) if by_seed else {} for by_seed, weights in found]
    return {"label": row.label, "params": row.trainable_params, "columns": columns}


def _column(
    page: SweepPage, row: TableRow, by_seed: Sequence[float], weights: Mapping[str, float]
) -> dict[str, float | str]:
    mean = sum(by_seed) / len(by_seed)
    shown: dict[str, float | str] = {"percent": 100 * mean, "interval": "–", "of": "as printed"}
    if row.published:
        return shown
    of = "one seed"
    if len(by_seed) > 1:
        (low, high), of = mean_interval(by_seed), f"{len(by_seed)} seeds"
    elif all(task in page.num_test_images for task in weights):
        low, high = _interval_of_images(mean, {task: row.values[task][0] for task in weights}, weights, page)
        of = f"{sum(page.num_test_images[task] for task in weights):,} test images, one seed"
    else:
        return shown | {"of": of}
    low, high = 100 * max(0.0, low), 100 * min(1.0, high)
    return shown | {"low": low, "high": high, "interval": f"{low:.1f} to {high:.1f}", "of": of}


def _interval_of_images(
    mean: float, accuracies: Mapping[str, float], weights: Mapping[str, float], page: SweepPage
) -> tuple[float, float]:
    """The interval of a weighted mean of shares, made of Wilson's interval of each; of a single one, just that."""
    # Zou & Donner, Statistics in Medicine 2008: mean − √(Σ w² (p − l)²), mean + √(Σ w² (u − p)²).
    below, above = 0.0, 0.0
    for task, accuracy in accuracies.items():
        low, high = share_interval(accuracy, page.num_test_images[task])
        below += (weights[task] * (accuracy - low)) ** 2
        above += (weights[task] * (high - accuracy)) ** 2
    return mean - math.sqrt(below), mean + math.sqrt(above)


def _weights(table: TaskTable) -> list[dict[str, float]]:
    """How much each task counts in each column."""
    groups = {group: {task: 1 / len(tasks) for task in tasks} for group, tasks in table.groups.items()}
    shown = list(groups.values()) if len(groups) > 1 else []
    headline = {task: weight / len(groups) for tasks in groups.values() for task, weight in tasks.items()}
    return [*({task: 1.0} for task in table.tasks), *shown, headline]
