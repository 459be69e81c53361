"""Tables as data, and what a reader sees of them."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import pytest
import rich.console

from sensitune.allocation import Allocation
from sensitune.errors import ArgumentError
from sensitune.report import ComparisonRow, allocation_table, comparison_table
from sensitune.report._table import Table


def _drawn(table: Table, *, width: int = 80) -> str:
    console = rich.console.Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def _rows(*accuracies: float | None, seeds: tuple[int, ...] = (0,)) -> list[ComparisonRow]:
    return [ComparisonRow(f"m{i}", 27, 42, 0.135, value, None, 3.0, seeds) for i, value in enumerate(accuracies)]


def test_operations_keep_the_models_order_and_add_up_over_the_blocks(allocation: Allocation) -> None:
    rows = {row.group: row for row in allocation_table(allocation).rows}
    assert list(rows) == ["cls_token", "norm1", "q", "k", "v", "fc1", "norm"]
    assert (rows["v"].sites, rows["v"].structured, rows["v"].params) == (2, 2, 16)
    assert (rows["norm1"].vectors, rows["norm1"].params) == (1, 4)
    assert (rows["fc1"].sparse_sites, rows["fc1"].sparse_params, rows["fc1"].params) == (1, 3, 3)
    assert rows["q"].params == 0


@pytest.mark.parametrize("by", ["operation", "block", "kind", "site"])
def test_every_grouping_adds_up_to_the_trainable_parameters(allocation: Allocation, by: str) -> None:
    table = allocation_table(allocation, by=by)
    assert sum(row.params for row in table.rows) == allocation.trainable_params == 27
    assert sum(row.share for row in table.rows) == pytest.approx(1.0)
    assert table.total is not None
    assert table.total.params == 27


def test_what_is_outside_the_blocks_comes_after_them(allocation: Allocation) -> None:
    rows = allocation_table(allocation, by="block").rows
    assert [(row.group, row.params) for row in rows] == [("0", 12), ("1", 11), ("outside", 4)]


def test_an_unknown_grouping_is_refused(allocation: Allocation) -> None:
    with pytest.raises(ArgumentError, match="`by` must be one of 'operation', 'block', 'kind', 'site'. Got 'layer'."):
        allocation_table(allocation, by="layer")


def test_an_allocation_that_trains_only_the_head_has_no_shares(allocation: Allocation) -> None:
    head_only = dataclasses.replace(allocation, structured={}, vectors=(), sparse={}, always_trained=())
    assert {row.share for row in allocation_table(head_only).rows} == {0.0}


def test_a_csv_file_holds_every_attribute_as_it_is(allocation: Allocation, tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    table = allocation_table(allocation)
    table.to_csv(path)
    with path.open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert read == [{name: str(value) for name, value in dataclasses.asdict(row).items()} for row in table.rows]


def test_a_csv_cell_of_several_values_and_one_without_a_value(tmp_path: Path) -> None:
    comparison_table(_rows(None, 0.5, seeds=(0, 1))).to_csv(tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["seeds"] for row in read] == ["0 1", "0 1"]
    assert [row["last_accuracy"] for row in read] == ["", "0.5"]


def test_markdown_has_a_cell_per_column_and_the_total_in_bold(allocation: Allocation) -> None:
    lines = allocation_table(allocation).to_markdown().splitlines()
    assert lines[0] == "| operation | sites | modules | whole vectors | sparse values | parameters | share |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert "| v | 2 | 2 | · | · | 16 | 59.26% |" in lines
    assert "| **total** | **12** | **2** | **1** | **3** | **27** | **100.00%** |" in lines
    assert lines[-1] == "Modules: LoRA of rank 1. The head (15 parameters) is trained too and not counted."


def test_a_note_is_no_markup_in_markdown() -> None:
    row = dataclasses.replace(_rows(0.5)[0], notes="a|b <i>\nc")
    assert r"a\|b \<i\> c |" in comparison_table([row]).to_markdown()


@pytest.mark.parametrize("by", ["operation", "block", "kind"])
def test_the_terminal_shows_whole_numbers_in_eighty_columns(allocation: Allocation, by: str) -> None:
    drawn = _drawn(allocation_table(allocation, by=by))
    assert "…" not in drawn
    assert "59.26%" in drawn or by != "operation"


def test_the_terminal_shows_the_brackets_of_a_slice(allocation: Allocation) -> None:
    assert "blocks.1.attn.qkv.weight[v]" in _drawn(allocation_table(allocation, by="site"), width=120)


def test_a_comparison_fits_eighty_columns(allocation: Allocation) -> None:
    row = ComparisonRow.of(
        allocation, method="Uniform LoRA r=8", last_accuracy=0.7, chosen_accuracy=0.71, seconds=412.0, seeds=[0]
    )
    large = dataclasses.replace(row, trainable_params=85_800_000, trainable_params_with_head=85_876_900)
    drawn = _drawn(comparison_table([row, large]))
    assert "…" not in drawn
    assert "6.9 min" in drawn
    assert "85,876,900" in drawn


def test_a_row_of_an_allocation_counts_with_and_without_the_head(allocation: Allocation) -> None:
    row = ComparisonRow.of(allocation, method="SPT-LoRA", seeds=[0])
    assert (row.trainable_params, row.trainable_params_with_head, row.backbone_share) == (27, 42, 27 / 200)


def test_columns_that_no_row_fills_are_not_shown() -> None:
    shown = [column.field for column in comparison_table(_rows(None, None)).columns]
    assert shown == ["method", "trainable_params", "trainable_params_with_head", "backbone_share", "seconds"]


def test_a_value_that_was_not_measured_is_a_dash() -> None:
    assert "| m0 | 27 | 42 | 13.50% | – | 3 s |" in comparison_table(_rows(None, 0.5)).to_markdown()


@pytest.mark.parametrize(
    ("rows", "caption"),
    [
        (_rows(0.5), "Test accuracy; one seed (0) per method."),
        (_rows(0.5, seeds=(0, 1, 2)), "Test accuracy; mean of seeds 0, 1, 2."),
        (_rows(0.5, seeds=()), "Test accuracy; seeds not recorded."),
        (_rows(0.5) + _rows(0.5, seeds=(1, 2)), "Test accuracy; seeds differ between rows."),
    ],
)
def test_the_caption_says_how_many_seeds_stand_behind_a_comparison(rows: list[ComparisonRow], caption: str) -> None:
    assert comparison_table(rows).caption == caption


def test_seeds_are_a_column_only_where_they_differ() -> None:
    same, different = comparison_table(_rows(0.5, 0.6)), comparison_table(_rows(0.5) + _rows(0.5, seeds=(1, 2)))
    assert "seeds" not in [column.field for column in same.columns]
    assert "1, 2" in different.to_markdown()


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ArgumentError, match="A comparison needs at least one row. Got none."):
        comparison_table([])


def test_a_method_named_by_others_is_shown_and_written_as_it_is(tmp_path: Path) -> None:
    odd = comparison_table(
        [dataclasses.replace(_rows(0.5)[0], method="=x[/]\x1b[2J", notes="[/red]")], title="[/] \x1b[2J"
    )
    console = rich.console.Console(file=io.StringIO(), width=200)
    console.print(odd)
    assert r"=x[/]\x1b[2J" in console.file.getvalue()
    assert "\x1b" not in console.file.getvalue()
    odd.to_csv(tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["method"] == r"'=x[/]\x1b[2J"
