"""What a run found, for people: tables for the terminal, files and pages, and figures.

A table is plain data (rows of one dataclass) that can be printed with rich, written as CSV or turned into
Markdown. A figure is a matplotlib ``Figure`` made without pyplot; `save_figure` writes it as PNG and SVG. Both need
only the values that the stages hand on, so they can be made again from what a run folder holds::

    allocation = Allocation.load("runs/mine/allocation.safetensors")
    rich.print(allocation_table(allocation, by="operation"))
    save_figure(figure_heat_map(allocation), "figures/heat_map")   # heat_map.png, heat_map.svg

Figures of one's own look like these with `new_figure` and the colours, in the context `style`.

Shares are fractions in the data and percent where people read them. Parameters are counted without the head, as in a
budget, unless a column says otherwise.
"""

from sensitune._installed import need

need("cli", what="sensitune.report")  # before what fails without it only in the middle of things

from sensitune.report._accuracy import figure_accuracy
from sensitune.report._allocation_table import allocation_table
from sensitune.report._bars import figure_by_block, figure_by_operation
from sensitune.report._comparison import ComparisonRow, comparison_table
from sensitune.report._heat_map import figure_heat_map
from sensitune.report._node_data import write_node_data
from sensitune.report._style import BLUE, FAINT, GREEN, ORANGE, RULE, new_figure, save_figure, style
from sensitune.report._table import Table
from sensitune.report._task_table import TableRow, TaskTable
from sensitune.report._trials import TrialRow, trials_table
from sensitune.report._write import write_report
from sensitune.report.pages import (
    Compared,
    ComparisonPage,
    ImageAnswers,
    Mistake,
    Page,
    SweepPage,
    write_comparison_page,
    write_page,
    write_sweep_page,
)

__all__ = [
    "BLUE",
    "FAINT",
    "GREEN",
    "ORANGE",
    "RULE",
    "Compared",
    "ComparisonPage",
    "ComparisonRow",
    "ImageAnswers",
    "Mistake",
    "Page",
    "SweepPage",
    "Table",
    "TableRow",
    "TaskTable",
    "TrialRow",
    "allocation_table",
    "comparison_table",
    "figure_accuracy",
    "figure_by_block",
    "figure_by_operation",
    "figure_heat_map",
    "new_figure",
    "save_figure",
    "style",
    "trials_table",
    "write_comparison_page",
    "write_node_data",
    "write_page",
    "write_report",
    "write_sweep_page",
]
