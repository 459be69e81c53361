"""The page of a run: what it says, and what a browser does with it."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from html_pages import NASTY, OpenPage, assert_fits_and_keeps_nobody_out, data_of
from PIL import Image

from sensitune.allocation import Allocation, allocate, uniform_allocation
from sensitune.errors import ArgumentError
from sensitune.report import ImageAnswers, Mistake, Page, write_page
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline

IMAGE = Image.fromarray(np.random.default_rng(0).integers(100, 140, (300, 200, 3), dtype=np.uint8))


@pytest.fixture
def ladder(sensitivity: Sensitivity) -> list[Allocation]:
    return allocate(sensitivity, budget=[6, 10, 16], rank=1, alpha=2.0)


@pytest.fixture
def page(sensitivity: Sensitivity, ladder: list[Allocation]) -> Page:
    return Page(
        title=NASTY,
        allocation=ladder[1],
        ladder=ladder,
        sensitivity=sensitivity,
        accuracy=0.75,
        num_test_images=400,
        epochs=[{"epoch": 1, "train_loss": 2.0, "validation_accuracy": 0.5}],
        answers=ImageAnswers(
            class_names=["cat", NASTY, "never seen"],
            labels=[0, 0, 0, 1],
            predictions=[0, 1, 1, 1],
            mistakes=[Mistake(name=f"{NASTY}.png", label=0, prediction=1, confidence=0.97, image=IMAGE)],
        ),
        stability={row.site: 0.5 for row in ladder[1].table() if row.params and row.tuning != "always"},
        settings=f"class: {NASTY}",
        command="sensitune view runs/mine",
    )


def test_a_page_holds_every_site_of_every_budget(page: Page, ladder: list[Allocation], tmp_path: Path) -> None:
    data = data_of(write_page(tmp_path / "report.html", page))
    assert data["own"] == 1
    for shown, allocation in zip(data["ladder"], ladder, strict=True):
        assert shown["total"] == allocation.trainable_params == sum(row[2] for row in shown["rows"])
        named = {data["sites"][index]["id"]: [how, params] for index, how, params, _ in shown["rows"]}
        assert named == {row.site: [row.tuning, row.params] for row in allocation.table() if row.params}


def test_names_stay_text(page: Page, tmp_path: Path) -> None:
    html = write_page(tmp_path / "report.html", page).read_text(encoding="utf-8")
    assert NASTY not in html
    assert "&lt;script&gt;document.title" in html


def test_answers_are_counted_by_class(page: Page, tmp_path: Path) -> None:
    path = write_page(tmp_path / "report.html", page)
    shares = {(row["truth"], row["said"]): (row["count"], row["share"]) for row in data_of(path)["answers"]}
    assert shares == {("cat", "cat"): (1, 1 / 3), ("cat", NASTY): (2, 2 / 3), (NASTY, NASTY): (1, 1.0)}
    html = path.read_text(encoding="utf-8")
    assert '<tr><th scope="row">cat</th><td class="number">3</td><td class="number">1</td>' in html
    assert '<tr><th scope="row">never seen</th><td class="number">0</td>' in html
    [picture] = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', html)
    with Image.open(io.BytesIO(base64.b64decode(picture))) as small:
        assert max(small.size) == 112
    assert len(picture) < 6_000


def test_many_classes_are_a_table_and_no_picture(page: Page, tmp_path: Path) -> None:
    many = ImageAnswers(class_names=[f"class {each}" for each in range(31)], labels=[30], predictions=[29])
    path = write_page(tmp_path / "report.html", dataclasses.replace(page, answers=many))
    assert data_of(path)["confusion"] is None
    assert "class 29 (1)" in path.read_text(encoding="utf-8")


def test_a_class_without_a_name_is_refused() -> None:
    with pytest.raises(ArgumentError, match="one of the 2 that have a name"):
        ImageAnswers(class_names=["a", "b"], labels=[2], predictions=[0])
    with pytest.raises(ArgumentError, match="one prediction per label. Got 0 and 1"):
        ImageAnswers(class_names=["a", "b"], labels=[1], predictions=[])


def test_the_accuracy_has_wilsons_interval(page: Page, tmp_path: Path) -> None:
    html = write_page(tmp_path / "report.html", page).read_text(encoding="utf-8")
    assert "70.5% to 79.0% (400 test images)" in html  # scipy.stats.binomtest(300, 400).proportion_ci(method="wilson")


def test_an_allocation_alone_has_a_page_without_a_slider(allocation: Allocation, tmp_path: Path) -> None:
    html = write_page(tmp_path / "report.html", Page(title="mine", allocation=allocation)).read_text(encoding="utf-8")
    assert 'id="budget"' not in html


def test_a_ladder_without_the_pages_own_allocation_is_refused(
    allocation: Allocation, ladder: list[Allocation], tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match="`ladder` must hold the page's own allocation"):
        write_page(tmp_path / "report.html", Page(title="mine", allocation=allocation, ladder=ladder))
    assert not (tmp_path / "report.html").exists()


def test_a_page_of_a_deep_model_at_forty_budgets_stays_below_three_megabytes(
    outline: ModelOutline, tmp_path: Path
) -> None:
    """As many sites as a ViT-B/16 has, each of them tuned at each budget, which is more than any run would say."""
    sites = tuple(
        dataclasses.replace(site, id=f"{block}.{site.id}", parameter=f"{block}.{site.parameter}", block=block)
        for block in range(44)
        for site in outline.sites[:5]
    )
    deep = dataclasses.replace(outline, sites=sites, backbone_params=sum(site.numel for site in sites))
    everywhere = [uniform_allocation(deep, rank=1, vectors=True) for _ in range(40)]
    written = write_page(tmp_path / "r.html", Page(title="deep", allocation=everywhere[7], ladder=everywhere))
    assert written.stat().st_size < 3e6


def test_in_a_browser_map_table_and_slider_say_the_same_and_nothing_leaves_the_page(
    open_page: OpenPage, page: Page, ladder: list[Allocation], tmp_path: Path
) -> None:
    path = write_page(tmp_path / "report.html", page)
    tab = open_page(path, width=1000)

    for step in (0, 2, 1):
        tab.locator("#budget").fill(str(step))
        assert tab.text_content("#totals").startswith(f"{ladder[step].trainable_params} trainable parameters")
        amounts = tab.locator("#sites tr td:nth-child(5)").all_text_contents()
        assert sum(map(int, amounts)) == ladder[step].trainable_params

    tab.locator("#map svg .mark-rect path").first.click(position={"x": 5, "y": 5})  # beside its number
    block, operation = tab.input_value("#block"), tab.input_value("#operation")
    chosen = {row.site for row in ladder[1].table() if row.params and row.operation == operation}
    rows = tab.locator("#sites tr td:nth-child(1)").all_text_contents()
    assert operation
    assert block
    assert rows
    assert set(rows) <= chosen
    tab.locator("#all").press("Enter")
    assert tab.locator("#sites tr").count() == sum(row.params > 0 for row in ladder[1].table())

    tab.select_option("#metric", "stays")
    assert set(tab.locator("#map svg .mark-text.role-mark text").all_text_contents()) == {"50", ""}
    assert "50 %" in tab.locator("#sites tr td:last-child").all_text_contents()
    assert sorted(tab.locator("#confusion svg .mark-text.role-mark text").all_text_contents()) == ["1", "1", "2"]
    tab.select_option("#metric", "how")
    assert "M: a module" in tab.text_content("#legend")
    assert tab.title() == NASTY


def test_in_a_browser_what_the_pointer_is_over_stands_out_everywhere(
    open_page: OpenPage, page: Page, tmp_path: Path
) -> None:
    tab = open_page(write_page(tmp_path / "report.html", page), width=1000)
    tab.locator("#map svg .mark-rect path").first.hover(position={"x": 5, "y": 5})
    tab.wait_for_selector("#sites tr.over")
    [operation] = set(tab.locator("#sites tr.over td:nth-child(3)").all_text_contents())
    assert tab.locator("#map svg .mark-rect path[stroke-width='3']").count() == 1
    assert tab.locator("#stack svg .mark-rect path[stroke-width='3']").count() == 1
    others = tab.locator("#sites tr", has_not_text=f"{operation}")
    others.first.hover()
    tab.wait_for_function(
        "name => [...document.querySelectorAll('#sites tr.over')].every(row => row.cells[2].textContent !== name)",
        arg=operation,
    )
    assert tab.locator("#map svg .mark-rect path[stroke-width='3']").count() == 1


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1600, "dark")])
def test_in_a_browser_a_page_fits_and_keeps_nobody_out(
    open_page: OpenPage, page: Page, tmp_path: Path, width: int, scheme: str
) -> None:
    tab = open_page(write_page(tmp_path / "report.html", page), width=width, scheme=scheme)
    assert_fits_and_keeps_nobody_out(tab, width)
