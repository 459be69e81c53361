"""A figure of the numbers that `report.py` wrote: every method against one, with its interval.

python benchmarks/accuracy/figures.py benchmarks/results/accuracy_cpu.json --output docs/images/accuracy_methods
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensitune.report import BLUE, FAINT, RULE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(rows: Sequence[Mapping[str, Any]], *, title: str, subtitle: str) -> Figure:
    """A dot with a bar per method: how much better than the reference it did, in points."""
    with style():
        figure, axes = new_figure(7.2, 1.2 + 0.3 * len(rows), title=title, subtitle=subtitle)
        axes.axvline(0, color=FAINT, linewidth=1)
        for place, row in enumerate(rows):
            axes.plot(row["interval"], [place, place], color=row["colour"], linewidth=2, solid_capstyle="butt")
            axes.plot(row["difference"], place, "o", color=row["colour"], markersize=6)
        axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
        axes.invert_yaxis()
        axes.grid(axis="x", color=RULE, linewidth=0.8)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("points of accuracy")
    return figure


def rows_of(summary: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The reference's label, and the others from best to worst, as differences to it."""
    ours = next(key.removesuffix(" minus this") for key in summary["methods"][0] if key.endswith(" minus this"))
    rows = []
    for each in summary["methods"]:
        found = each[f"{ours} minus this"]
        if found is None:
            continue
        low, high = found["interval"]
        label = each["method"] + ("" if each["equal_cost"] else " (other cost)")
        rows.append({"method": label, "difference": -found["difference"], "interval": [-high, -low], "colour": BLUE})
    return ours, sorted(rows, key=lambda row: -row["difference"])


def main() -> None:
    """Draw the figure of one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--title", default="Methods at equal budgets")
    parser.add_argument("--output", type=Path, required=True, help="path of the PNG, without its ending")
    arguments = parser.parse_args()
    summary = json.loads(arguments.results.read_text(encoding="utf-8"))
    ours, rows = rows_of(summary)
    subtitle = f"{summary['split']} accuracy minus that of {ours}; 95 % intervals"
    figure = draw(rows, title=arguments.title, subtitle=subtitle)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(arguments.output.with_suffix(".png"), dpi=150, facecolor="white")


if __name__ == "__main__":
    main()
