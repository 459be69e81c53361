"""One file that opens in any browser, without a network: where the parameters of a run went, and would go."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensitune.allocation import Allocation
from sensitune.errors import ArgumentError
from sensitune.report._counts import count_subject
from sensitune.report.pages._answers import ImageAnswers, by_class, confusion_of, shown_mistakes
from sensitune.report.pages._charts import block_chart, curve_chart, map_chart
from sensitune.report.pages._file import need_page, write_html
from sensitune.report.pages._intervals import share_interval
from sensitune.report.pages._sites import axes_of, describe_sites
from sensitune.sensitivity import Sensitivity

_CURVES = {"train_loss": "training loss", "validation_accuracy": "validation accuracy"}


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page shows.

    Attributes:
        title: What it is about.
        allocation: What was tuned.
        ladder: Allocations at growing budgets, `allocation` itself among them; alone, there is no slider.
        sensitivity: The scores; with them and the allocation's `tau`, the map shows the most sensitive parameters too.
        accuracy: Test accuracy, from 0 to 1; None if it was not measured.
        num_test_images: How many images that was measured on; gives the interval.
        facts: More lines of the result, such as the training time.
        answers: What the trained model said of its test images.
        no_answers: Why there are none, in a sentence.
        stability: Site -> the share of what is tuned there that half of the batches alone would tune too, from 0 to 1;
            None if that was not kept.
        epochs: A mapping per epoch: ``epoch``, ``train_loss``, ``validation_accuracy``.
        settings: The settings as YAML.
        command: What writes the page again.
    """

    title: str
    allocation: Allocation
    ladder: Sequence[Allocation] = ()
    sensitivity: Sensitivity | None = None
    accuracy: float | None = None
    num_test_images: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    answers: ImageAnswers | None = None
    no_answers: str = ""
    stability: Mapping[str, float] | None = None
    epochs: Sequence[Mapping[str, float | None]] = ()
    settings: str = ""
    command: str = ""


def write_page(path: str | os.PathLike[str], page: Page) -> Path:
    """Write a page as one HTML file that asks nothing of a network.

    Args:
        path: Where to; replaced if it is there.
        page: What to show.

    Returns:
        The path.

    Raises:
        ArgumentError: If the allocation is not one of the ladder.
        MissingPackageError: If the extra ``page`` is not installed.
    """
    need_page()
    data = _data(page)
    return write_html(
        path,
        "run",
        data,
        page=page,
        result=_result(page),
        classes=[] if page.answers is None else by_class(page.answers),
        mistakes=[] if page.answers is None else shown_mistakes(page.answers),
    )


def _data(page: Page) -> dict[str, Any]:
    """What the page's script reads."""
    ladder = list(page.ladder) or [page.allocation]
    own = next((index for index, each in enumerate(ladder) if each is page.allocation), None)
    if own is None:
        raise ArgumentError("`ladder` must hold the page's own allocation. Add it, or leave the ladder out.")
    sites = list({row.site: row for each in ladder for row in each.table()}.values())
    numbers = {row.site: number for number, row in enumerate(sites)}
    sensitive = _sensitive(page)
    blocks, operations = axes_of(sites)
    stability = page.stability or {}
    confusion, answers = (None, []) if page.answers is None else confusion_of(page.answers)
    return {
        "sites": describe_sites(
            sites,
            {
                row.site: {"sensitive": sensitive.get(row.site, 0)}
                | ({"stays": round(stability[row.site], 4)} if row.site in stability else {})
                for row in sites
            },
        ),
        "has_sensitive": bool(sensitive),
        "has_stability": bool(stability),
        "confusion": confusion,
        "answers": answers,
        "ladder": [_step(each, numbers) for each in ladder],
        "own": own,
        "blocks": blocks,
        "operations": operations,
        "map": map_chart(blocks, operations),
        "stack": block_chart(blocks, operations),
        "curves": [
            curve_chart([dict(row) for row in page.epochs if row.get(name) is not None], name, title)
            for name, title in _CURVES.items()
            if any(row.get(name) is not None for row in page.epochs)
        ],
    }


def _step(allocation: Allocation, numbers: Mapping[str, int]) -> dict[str, Any]:
    """An allocation in few bytes: ``[site, how, parameters, rank]`` of what is tuned."""
    rows = [
        [numbers[row.site], row.tuning, row.params, allocation.structured.get(row.site, 0)]
        for row in allocation.table()
        if row.params
    ]
    return {"total": allocation.trainable_params, "rows": rows}


def _sensitive(page: Page) -> dict[str, int]:
    if page.sensitivity is None or not page.allocation.tau:
        return {}
    return {row.site: row.params for row in count_subject(page.sensitivity, page.allocation.tau).rows}


def _result(page: Page) -> dict[str, str]:
    allocation = page.allocation
    shown = {}
    if page.accuracy is not None:
        shown["Test accuracy"] = f"{page.accuracy:.1%}"
        if page.num_test_images:
            low, high = share_interval(page.accuracy, page.num_test_images)
            shown["95 % interval"] = f"{low:.1%} to {high:.1%} ({page.num_test_images:,} test images)"
    share = allocation.trainable_params / allocation.outline.backbone_params
    shown["Trainable parameters"] = f"{allocation.trainable_params:,} ({share:.2%} of the backbone), head not counted"
    shown["Head"] = f"{allocation.head_params:,} parameters"
    shown["Modules"] = (
        f"{len(allocation.structured):,} × {allocation.module_label}" if allocation.structured else "none"
    )
    return shown | dict(page.facts)
