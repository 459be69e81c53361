"""The page that compares: what it says, and what a browser does with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from html_pages import NASTY, OpenPage, assert_fits_and_keeps_nobody_out, data_of

from sensitune.allocation import Allocation, uniform_allocation
from sensitune.errors import ArgumentError
from sensitune.report import Compared, ComparisonPage, ComparisonRow, write_comparison_page


def _compared(name: str, allocation: Allocation, **settings: str) -> Compared:
    row = ComparisonRow.of(allocation, method=name, last_accuracy=0.75, seconds=30.0)
    return Compared(result=row, allocation=allocation, num_test_images=400, settings=settings)


@pytest.fixture
def other_values(allocation: Allocation) -> Allocation:
    """As many values of the same site, one of them another."""
    return dataclasses.replace(allocation, sparse={"blocks.1.mlp.fc1.weight": torch.tensor([0, 5, 30])})


@pytest.fixture
def page(allocation: Allocation, other_values: Allocation) -> ComparisonPage:
    uniform = uniform_allocation(allocation.outline, rank=1)
    head = ComparisonRow("Head", 0, 15, 0.0, last_accuracy=0.5)
    entries = [
        _compared("SPT", allocation, rank="1", seed="0"),
        _compared(NASTY, other_values, rank="1", seed="1"),
        _compared("Uniform", uniform, rank="1", seed="0"),
        Compared(result=head, allocation=None),
    ]
    return ComparisonPage(title="Four", entries=entries, command="sensitune view a b c d")


def test_sites_that_are_tuned_alike_share_a_variant(page: ComparisonPage, tmp_path: Path) -> None:
    data = data_of(write_comparison_page(tmp_path / "c.html", page))
    variants = [{data["sites"][row[0]]["id"]: row[4] for row in entry["rows"]} for entry in data["entries"]]
    shared = "blocks.0.attn.qkv.weight[v]"
    assert [each[shared] for each in variants] == [0, 0, 0]
    assert [each["blocks.1.mlp.fc1.weight"] for each in variants] == [0, 1, 2]  # other values; a module


def test_settings_are_shown_where_they_differ(page: ComparisonPage, tmp_path: Path) -> None:
    html = write_comparison_page(tmp_path / "c.html", page).read_text(encoding="utf-8")
    assert '<th scope="row">seed</th>' in html
    assert '<th scope="row">rank</th>' not in html
    assert NASTY not in html


def test_pairs_are_counted_by_module_and_by_value(page: ComparisonPage, tmp_path: Path) -> None:
    html = write_comparison_page(tmp_path / "c.html", page).read_text(encoding="utf-8")
    rows = [part.split("</tr>")[0] for part in html.split('<td class="wrap">SPT</td>')[1:]]
    counts = [[cell.split("<")[0] for cell in row.split('<td class="number">')[1:]] for row in rows]
    assert counts == [["2", "0", "0", "6", "1", "1"], ["2", "0", "6", "0", "7", "0"]]


def test_one_name_for_two_is_refused(allocation: Allocation) -> None:
    one = _compared("SPT", allocation)
    with pytest.raises(ArgumentError, match="each of its own name. Got SPT, SPT."):
        ComparisonPage(title="two", entries=[one, one])
    with pytest.raises(ArgumentError, match="at least two entries"):
        ComparisonPage(title="one", entries=[one])


def test_those_that_place_nothing_alone_are_refused() -> None:
    heads = [Compared(result=ComparisonRow(name, 0, 15, 0.0), allocation=None) for name in ("a", "b")]
    with pytest.raises(ArgumentError, match="None of a, b places anything"):
        ComparisonPage(title="two", entries=heads)


def test_in_a_browser_maps_and_table_show_what_differs(
    open_page: OpenPage, page: ComparisonPage, allocation: Allocation, tmp_path: Path
) -> None:
    tab = open_page(write_comparison_page(tmp_path / "c.html", page), width=1400)
    named = tab.locator("#sites tr td:nth-child(1)").all_text_contents()
    assert "blocks.1.mlp.fc1.weight" in named
    assert "blocks.0.attn.qkv.weight[v]" not in named
    assert tab.text_content("#totals").startswith(f"{len(named)} of ")
    row = tab.locator("#sites tr", has_text="blocks.1.mlp.fc1.weight")
    assert row.locator("td").nth(4).text_content() == "single values: 3 (other ones)"

    tab.locator("#alike").check()
    assert "blocks.0.attn.qkv.weight[v]" in tab.locator("#sites tr td:nth-child(1)").all_text_contents()

    tab.select_option("#metric", "difference")
    tab.wait_for_selector("body[data-ready]")
    shown = set(tab.locator("#map-2 svg .mark-text.role-mark text").all_text_contents())
    assert "−4" in shown  # the whole vector that the first trains alone
    assert "=" in shown

    tab.locator("#map-1 svg .mark-rect path").first.click(position={"x": 5, "y": 5})
    assert tab.input_value("#operation")
    tab.locator("#all").press("Enter")
    assert tab.input_value("#operation") == ""
    tab.select_option("#reference", "2")
    assert "Uniform" in tab.text_content("#legend")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1600, "light")])
def test_in_a_browser_a_comparison_fits_and_keeps_nobody_out(
    open_page: OpenPage, page: ComparisonPage, tmp_path: Path, width: int, scheme: str
) -> None:
    tab = open_page(write_comparison_page(tmp_path / "c.html", page), width=width, scheme=scheme)
    assert_fits_and_keeps_nobody_out(tab, width)
