"""The page of a sweep: its intervals, and what a browser does with it."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

import pytest
from html_pages import NASTY, OpenPage, assert_fits_and_keeps_nobody_out, data_of

from sensitune.report import SweepPage, TableRow, TaskTable, write_sweep_page
from sensitune.report.pages._intervals import mean_interval, share_interval

GROUPS = {"natural": ("cats", "dogs"), "special": ("cells",)}
SEEDS = {"cats": [0.8, 0.9], "dogs": [0.7, 0.7], "cells": [0.5, 0.6]}


@pytest.fixture
def page() -> SweepPage:
    rows = (
        TableRow(label=NASTY, values=SEEDS, trainable_params=9_000),
        TableRow(label="LoRA", values={name: [0.75] for name in SEEDS}, trainable_params=12_000),
        TableRow(label="Unfinished", values={"cats": [0.7]}, trainable_params=9_000),
        TableRow(label="Printed", values={"cats": [0.9]}, mean=0.8, published=True),
    )
    images = {"cats": 100, "dogs": 400, "cells": 50}
    table = TaskTable(groups=GROUPS, rows=rows)
    return SweepPage(title="Mine", table=table, num_test_images=images, failed={"cats/lora": "it diverged"})


def _columns(page: SweepPage, label: str, path: Path) -> dict[str, dict[str, float]]:
    data = data_of(write_sweep_page(path / "s.html", page))
    [method] = [each for each in data["methods"] if each["label"] == label]
    return dict(zip(data["columns"], method["columns"], strict=True))


def test_seeds_have_students_interval(page: SweepPage, tmp_path: Path) -> None:
    found = _columns(page, NASTY, tmp_path)
    assert list(found) == ["cats", "dogs", "cells", "natural", "special", "mean"]
    by_seed = [fmean([fmean([SEEDS["cats"][seed], SEEDS["dogs"][seed]]), SEEDS["cells"][seed]]) for seed in (0, 1)]
    half = 12.7062 * abs(by_seed[0] - by_seed[1]) / 2  # s = |a − b| / √2, over √2 seeds
    assert found["mean"]["percent"] == pytest.approx(100 * fmean(by_seed))
    assert found["mean"]["high"] == pytest.approx(min(100, 100 * (fmean(by_seed) + half)))
    assert found["dogs"]["low"] == found["dogs"]["high"] == pytest.approx(70.0)


def test_one_seed_has_the_interval_of_its_test_images(page: SweepPage, tmp_path: Path) -> None:
    found = _columns(page, "LoRA", tmp_path)
    low, high = share_interval(0.75, 100)
    assert [found["cats"]["low"], found["cats"]["high"]] == pytest.approx([100 * low, 100 * high])
    below = [0.75 - share_interval(0.75, images)[0] for images in (100, 400, 50)]
    spread = math.hypot(0.25 * below[0], 0.25 * below[1], 0.5 * below[2])
    assert found["mean"]["low"] == pytest.approx(100 * (0.75 - spread))
    assert found["mean"]["of"] == "550 test images, one seed"


def test_what_is_not_finished_or_was_printed_has_no_interval(page: SweepPage, tmp_path: Path) -> None:
    assert _columns(page, "Unfinished", tmp_path)["mean"] == {}
    printed = _columns(page, "Printed", tmp_path)
    assert printed["mean"] == {"percent": 80.0, "interval": "–", "of": "as printed"}
    assert printed["natural"] == {}


@pytest.mark.parametrize("count", [2, 3, 10, 31])
def test_the_quantiles_are_students(count: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed", exc_type=ImportError)
    values = [0.1 * (index % 3) for index in range(count)]
    expected = stats.t.interval(0.95, count - 1, loc=fmean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx(tuple(expected), abs=1e-5)


def test_in_a_browser_charts_and_table_show_the_chosen_column(
    open_page: OpenPage, page: SweepPage, tmp_path: Path
) -> None:
    tab = open_page(write_sweep_page(tmp_path / "s.html", page), width=1200)
    assert tab.locator("#intervals tr td:nth-child(1)").all_text_contents() == [NASTY, "LoRA", "Printed"]
    tab.select_option("#column", label="cats")
    shown = dict(
        zip(
            tab.locator("#intervals tr td:nth-child(1)").all_text_contents(),
            tab.locator("#intervals tr td:nth-child(2)").all_text_contents(),
            strict=True,
        )
    )
    assert shown == {NASTY: "85.0", "LoRA": "75.0", "Unfinished": "70.0", "Printed": "90.0"}
    tab.wait_for_function("document.querySelectorAll('#methods svg .mark-symbol path').length === 4")
    assert tab.locator("#accuracy svg .mark-symbol path").count() == 3  # what was printed does not say its cost
    assert tab.text_content("main").count("it diverged") == 1


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1600, "dark")])
def test_in_a_browser_a_sweep_fits_and_keeps_nobody_out(
    open_page: OpenPage, page: SweepPage, tmp_path: Path, width: int, scheme: str
) -> None:
    tab = open_page(write_sweep_page(tmp_path / "s.html", page), width=width, scheme=scheme)
    assert_fits_and_keeps_nobody_out(tab, width)
