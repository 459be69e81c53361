"""The field's table: means over seeds, groups and tasks against a slow reference, and text that survives its format."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st

from sensitune.errors import ArgumentError
from sensitune.report import TableRow, TaskTable

GROUPS = {"natural": ("cifar", "dtd"), "specialized": ("eurosat",), "structured": ("dsprites_loc", "dsprites_ori")}
TASKS = [task for tasks in GROUPS.values() for task in tasks]
VALUES = {
    "cifar": (0.70, 0.72),
    "dtd": (0.60, 0.58),
    "eurosat": (0.95, 0.97),
    "dsprites_loc": (0.10, 0.20),
    "dsprites_ori": (0.30, 0.20),
}
PUBLISHED = TableRow(
    "SPT-LoRA (published)",
    {},
    published=True,
    group_values={"natural": 0.819, "specialized": 0.859, "structured": 0.613},
    mean=0.764,
    note="He et al., ICCV 2023",
)


def table(*rows: TableRow, groups: Mapping[str, tuple[str, ...]] = GROUPS) -> TaskTable:
    return TaskTable(groups, rows, "Small")


def row(values: Mapping[str, tuple[float, ...]] = VALUES, **others: object) -> TableRow:
    return TableRow("SPT-LoRA", values, **others)


def markdown_cells(shown: TaskTable) -> list[list[str]]:
    lines = [line for line in shown.markdown().splitlines() if line.startswith("|")]
    return [[cell.strip().replace(r"\_", "_") for cell in line.strip("|").split("|")] for line in lines]


def csv_rows(shown: TaskTable) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(shown.csv())))


def slow_mean(values: list[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def slow_std(values: list[float]) -> float:
    middle = slow_mean(values)
    squares = 0.0
    for value in values:
        squares += (value - middle) * (value - middle)
    return math.sqrt(squares / (len(values) - 1))


@given(
    st.integers(2, 4).flatmap(
        lambda seeds: st.lists(
            st.lists(st.floats(0, 1), min_size=seeds, max_size=seeds), min_size=len(TASKS), max_size=len(TASKS)
        )
    )
)
def test_every_mean_and_standard_deviation_equals_a_slow_reference(drawn: list[list[float]]) -> None:
    values = dict(zip(TASKS, drawn, strict=True))
    scores = table(row(values)).scores(row(values))
    columns = [values[task] for task in TASKS]
    groups = []
    for tasks in GROUPS.values():
        groups.append([slow_mean([values[task][seed] for task in tasks]) for seed in range(len(drawn[0]))])
    headline = [slow_mean([group[seed] for group in groups]) for seed in range(len(drawn[0]))]
    for score, reference in zip(scores, [*columns, *groups, headline], strict=True):
        assert score is not None
        assert score.mean == pytest.approx(slow_mean(reference))
        assert score.std == pytest.approx(slow_std(reference), abs=1e-9)


def test_there_is_a_column_per_task_then_the_groups_then_their_mean() -> None:
    headings, _, cells = markdown_cells(table(row()))
    assert headings == ["method", *TASKS, *GROUPS, "mean"]
    # Group means by seed: natural 0.65, 0.65; specialized 0.95, 0.97; structured 0.2, 0.2; headline 0.6, 0.6067.
    assert cells[1:] == [
        *("71.0 ± 1.4", "59.0 ± 1.4", "96.0 ± 1.4", "15.0 ± 7.1", "25.0 ± 7.1"),
        *("65.0 ± 0.0", "96.0 ± 1.4", "20.0 ± 0.0", "60.3 ± 0.5"),
    ]


def test_the_means_of_a_single_group_are_one_column() -> None:
    shown = table(TableRow("a", {"cub": [0.5], "cars": [0.7]}), groups={"fgvc": ("cub", "cars")})
    assert markdown_cells(shown)[0] == ["method", "cub", "cars", "mean"]
    assert markdown_cells(shown)[2] == ["a", "50.0", "70.0", "60.0"]
    assert "group means" not in shown.caption
    assert "multicolumn" not in shown.latex()


def test_one_seed_has_no_standard_deviation() -> None:
    shown = table(row({task: values[:1] for task, values in VALUES.items()}))
    assert "±" not in shown.markdown()
    assert "Test accuracy in per cent, one seed." in shown.caption
    assert csv_rows(shown)[0]["cifar_std"] == ""


def test_a_missing_task_takes_the_means_it_counts_in_with_it() -> None:
    shown = table(row({task: values for task, values in VALUES.items() if task != "dtd"}))
    cells = dict(zip(*markdown_cells(shown)[::2], strict=True))
    assert [name for name, cell in cells.items() if cell == "–"] == ["dtd", "natural", "mean"]
    assert cells["structured"] == "20.0 ± 0.0"
    assert "SPT-LoRA: 4 of 5 tasks finished." in shown.caption


def test_a_row_without_results_is_dashes() -> None:
    shown = table(TableRow("nothing yet", {}))
    assert set(markdown_cells(shown)[2][1:]) == {"–"}
    assert shown.caption.startswith("Test accuracy in per cent. ")
    assert csv_rows(shown)[0]["num_seeds"] == ""


def test_a_published_row_stands_beside_as_it_was_printed() -> None:
    shown = table(row(), PUBLISHED)
    cells = dict(zip(markdown_cells(shown)[0], markdown_cells(shown)[3], strict=True))
    assert [cells[name] for name in (*GROUPS, "mean")] == ["81.9", "85.9", "61.3", "76.4"]
    assert {cells[task] for task in TASKS} == {"–"}
    assert "over 2 seeds" in shown.caption
    assert shown.caption.endswith("SPT-LoRA (published): He et al., ICCV 2023.")


def test_nothing_is_computed_of_a_published_row() -> None:
    published = TableRow("p", {task: [0.5] for task in TASKS}, published=True)
    assert markdown_cells(table(published))[2] == ["p", *["50.0"] * 5, *["–"] * 4]


def test_parameters_are_a_column_only_where_they_are_known() -> None:
    assert "trainable" not in table(row()).markdown()
    shown = table(row(trainable_params=412_345), PUBLISHED)
    assert [cells[1] for cells in markdown_cells(shown)] == ["trainable", "---:", "412,345", "–"]
    assert "the head not counted" in shown.caption


def test_a_csv_file_has_twelve_digits_and_deviations_in_columns_of_their_own() -> None:
    first, second = csv_rows(table(row(trainable_params=7, note="a, b"), PUBLISHED))
    assert list(first)[:7] == ["method", "published", "note", "num_seeds", "trainable_params", "cifar", "cifar_std"]
    assert list(first)[-4:] == ["mean_structured", "mean_structured_std", "mean", "mean_std"]
    assert len(first) == 5 + 2 * (len(TASKS) + len(GROUPS) + 1)
    assert (first["published"], first["num_seeds"], first["trainable_params"], first["note"]) == (
        "False",
        "2",
        "7",
        "a, b",
    )
    assert float(first["mean"]) == pytest.approx((0.6 + 0.91 / 1.5) / 2, abs=1e-12)
    assert (second["published"], second["num_seeds"], second["mean_natural"]) == ("True", "", "0.819")
    assert (second["mean_natural_std"], second["cifar"]) == ("", "")


def latex_rows(text: str) -> list[str]:
    inside = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    return [line for line in inside.splitlines() if line.endswith(r"\\")]


def test_every_line_of_the_latex_table_fills_its_columns() -> None:
    text = table(row(trainable_params=7), PUBLISHED).latex()
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns is not None
    assert columns.group(1) == "lr" + "c" * 9
    groups, *others = latex_rows(text)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in others} == {10}
    spanned = [int(width) for width in re.findall(r"\\multicolumn\{(\d)\}", groups)]
    assert spanned == [2, 1, 2, 4]
    assert re.findall(r"\\cmidrule\(lr\)\{([\d-]+)\}", text) == ["3-4", "5-5", "6-7", "8-11"]
    assert r"& 71.0{\scriptsize$\,\pm\,$1.4} &" in text


def test_a_wide_latex_table_is_shrunk_to_the_page_and_a_narrow_one_is_left() -> None:
    assert "resizebox" not in table(row()).latex()
    wide = {"all": tuple(f"task{index}" for index in range(20))}
    assert r"\resizebox{\textwidth}" in table(TableRow("a", {}), groups=wide).latex()


def test_latex_is_balanced_and_its_special_characters_are_escaped() -> None:
    awkward = TableRow(r"50% & #1_{a}^~\x$", VALUES, note="é|<b>")
    text = table(awkward).latex()
    assert r"50\% \& \#1\_\{a\}\textasciicircum{}\textasciitilde{}\textbackslash{}x\$ & 71.0" in text
    assert r"\rotatebox{90}{dsprites\_loc}" in text
    assert r"é\textbar{}\textless{}b\textgreater{}" in text
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    assert sorted(re.findall(r"\\begin\{(.*?)\}", text)) == sorted(re.findall(r"\\end\{(.*?)\}", text))


def test_names_from_outside_are_no_markup_in_markdown() -> None:
    shown = table(TableRow("a|b <i>", VALUES, note="*see* [x](y)\n# z")).markdown()
    assert r"| a\|b \<i\> | 71.0" in shown
    assert shown.endswith("a\\|b \\<i\\>: \\*see\\* \\[x\\](y) \\# z.\n")


def test_the_terminal_shows_a_line_per_task() -> None:
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(table(row(trainable_params=412_345), PUBLISHED))
    drawn = console.file.getvalue()
    assert "…" not in drawn
    lines = {line.split()[0]: line.split()[1:] for line in drawn.splitlines() if line.strip()}
    assert lines["dsprites_ori"] == ["25.0", "±", "7.1", "–"]
    assert lines["mean"] == ["60.3", "±", "0.5", "76.4"]
    assert lines["trainable"] == ["412,345", "–"]


@pytest.mark.parametrize("width", [80, 200])
def test_many_methods_have_a_line_each_on_the_terminal(width: int) -> None:
    console = rich.console.Console(file=io.StringIO(), width=width)
    many = [replace(row(trainable_params=412_345), label=f"method{index}") for index in range(20)]
    console.print(table(*many))
    drawn = console.file.getvalue()
    assert "…" not in drawn
    first, *lines = (line.split() for line in drawn.splitlines() if line.strip())
    headings = {name for name in (*first, *lines[0]) if name in TASKS}
    assert headings == (set(TASKS) if width == 200 else set())
    assert ("too narrow" in " ".join(drawn.split())) == (width == 80)
    for index in range(20):
        cells = next(line for line in lines if line[0] == f"method{index}")
        assert cells[-4:] == ["60.3", "±", "0.5", "412,345"]


def test_per_cent_is_refused_where_a_fraction_is_meant() -> None:
    with pytest.raises(ArgumentError, match=r"must be in \[0, 1\], not in per cent. 'SPT-LoRA' has 71.0\."):
        row({"cifar": (71.0,)})
    with pytest.raises(ArgumentError, match=r"must be in \[0, 1\], not in per cent. 'p' has 76.4\."):
        TableRow("p", {}, published=True, mean=76.4)


@pytest.mark.parametrize(
    "values", [{"cifar": (0.5, 0.5), "dtd": (0.5,)}, {"cifar": ()}], ids=["different seeds", "no seeds"]
)
def test_tasks_with_different_seeds_are_refused(values: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(
        ArgumentError, match=r"Every task of 'SPT-LoRA' must have one accuracy per seed.* Got cifar: \d"
    ):
        row(values)


def test_a_published_accuracy_is_single() -> None:
    with pytest.raises(ArgumentError, match="a published one a single accuracy. Got cifar: 2, dtd: 2"):
        row(published=True)


def test_the_means_of_a_measured_row_are_not_given() -> None:
    with pytest.raises(ArgumentError, match="`group_values` and `mean` of 'SPT-LoRA' follow from its values"):
        row(mean=0.5)


@pytest.mark.parametrize(
    "unknown",
    [TableRow("a", {"mnist": [0.5]}), TableRow("a", {}, published=True, group_values={"mnist": 0.5})],
    ids=["task", "group"],
)
def test_what_has_no_column_is_refused(unknown: TableRow) -> None:
    with pytest.raises(ArgumentError, match="'a' has 'mnist', which is no column of the table"):
        table(unknown)


def test_a_table_of_nothing_is_refused() -> None:
    with pytest.raises(ArgumentError, match="needs at least one row and one task. Got none"):
        table()
    with pytest.raises(ArgumentError, match="needs at least one row and one task. Got none"):
        table(row({}), groups={"empty": ()})


@pytest.mark.parametrize("width", [60, 300])
def test_names_from_outside_are_neither_markup_nor_orders_on_the_terminal(width: int) -> None:
    groups = {"a[/]": ("t[/]\x1b[31m", "\udce9"), "b": ("[red]x",)}
    published = TableRow("SPT [/]", {"t[/]\x1b[31m": [0.5]}, published=True, note="from [/] \x1b]0;title\x07")
    console = rich.console.Console(file=io.StringIO(), width=width)
    console.print(TaskTable(groups, (published,), title="all[/]\x1b[2J"))
    drawn = console.file.getvalue()
    assert "\x1b" not in drawn
    assert r"all[/]\x1b[2J" in drawn
    assert r"SPT [/]: from [/] \x1b]0;title\x07." in " ".join(drawn.split())
    drawn.encode()


def test_names_from_outside_are_no_formulas_and_can_be_written() -> None:
    shown = TaskTable({"g": ("=cmd|x", "\udce9\x1b")}, (TableRow("@SUM(A1)", {}, note="-1+1"),))
    heading, line = shown.csv().splitlines()
    assert heading.split(",")[5:9] == ["'=cmd|x", "'=cmd|x_std", r"\xe9\x1b", r"\xe9\x1b_std"]
    assert line.startswith("'@SUM(A1),False,'-1+1,")
    assert r"\textbackslash{}xe9\textbackslash{}x1b" in shown.latex()
    (shown.csv() + shown.latex() + shown.markdown()).encode()
