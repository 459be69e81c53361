"""Bars: where the parameters are, by block and by operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sensitune.allocation import Allocation, SiteRow, group_rows
from sensitune.report._counts import OUTSIDE, Counts, block_name, count_subject
from sensitune.report._style import PALE, RULE, SENSITIVE, TUNINGS, new_figure, style
from sensitune.sensitivity import Sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure_by_block(subject: Allocation | Sensitivity, *, tau: int | None = None) -> Figure:
    """Draw the share of each block, bottom of the network on the left.

    Args:
        subject: An allocation (the share of its trainable parameters, stacked by how they are tuned) or a sensitivity
            (the share of the `tau` most sensitive parameters, beside the share of all parameters).
        tau: How many of the most sensitive parameters; only with a sensitivity.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        ArgumentError: If `tau` is missing or out of place, or every count is zero.
    """
    counts = count_subject(subject, tau)
    names = _block_names(counts)
    groups = group_rows(counts.rows, block_name)
    with style():
        width = min(12.0, max(5.6, 1.6 + 0.42 * len(names)))
        figure, axes = new_figure(width, 3.8, title=f"{counts.title} by block", subtitle=f"% of {counts.whole}")
        _draw_bars(axes, [groups[name] for name in names], counts, horizontal=False)
        step = 1 + len(names) // 26  # the labels of very deep models would touch
        axes.set_xticks(range(0, len(names), step), names[::step])
        axes.set_xlabel("block")
        axes.margins(x=0.02)
        _finish(axes, horizontal=False)
    return figure


def figure_by_operation(subject: Allocation | Sensitivity, *, tau: int | None = None) -> Figure:
    """Draw the share of each operation, the largest on top; what has nothing is left out.

    Args:
        subject: An allocation or a sensitivity, as in `figure_by_block`.
        tau: How many of the most sensitive parameters; only with a sensitivity.

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        ArgumentError: As in `figure_by_block`.
    """
    counts = count_subject(subject, tau)
    operations = group_rows(counts.rows, lambda row: row.operation)
    groups = {name: rows for name, rows in operations.items() if _params(rows)}
    names = sorted(groups, key=lambda name: _params(groups[name]))
    with style():
        height = 1.5 + 0.32 * len(names)
        figure, axes = new_figure(6.4, height, title=f"{counts.title} by operation", subtitle=f"% of {counts.whole}")
        ends = _draw_bars(axes, [groups[name] for name in names], counts, horizontal=True)
        axes.set_yticks(range(len(names)), names)
        for position, (name, end) in enumerate(zip(names, ends, strict=True)):
            text = f"{100 * _params(groups[name]) / counts.total:.1f}"
            axes.annotate(text, (end, position), (4, 0), textcoords="offset points", va="center", fontsize=8)
        _finish(axes, horizontal=True)
    return figure


def _block_names(counts: Counts) -> list[str]:
    """Every block, those without a parameter too, then what is outside."""
    blocks = {row.block for row in counts.rows if row.block is not None}
    outside = [OUTSIDE] if any(row.block is None and row.params for row in counts.rows) else []
    return [*map(str, sorted(blocks)), *outside]


def _params(rows: Sequence[SiteRow], tuning: str | None = None) -> int:
    return sum(row.params for row in rows if tuning in (None, row.tuning))


def _draw_bars(axes: Axes, groups: Sequence[Sequence[SiteRow]], counts: Counts, *, horizontal: bool) -> list[float]:
    """One stacked bar per group, in percent; returns where each ends."""
    draw = axes.barh if horizontal else axes.bar
    positions, ends = range(len(groups)), [0.0] * len(groups)
    if counts.ranked:  # behind the bars: where they would end if every parameter were equally sensitive
        sizes = [100 * sum(row.size for row in rows) / counts.size for rows in groups]
        draw(positions, sizes, 0.8, color=PALE, label="share of all ranked parameters")
    for tuning, (colour, name) in (SENSITIVE if counts.ranked else TUNINGS).items():
        lengths = [100 * _params(rows, tuning) / counts.total for rows in groups]
        if any(lengths):
            draw(positions, lengths, 0.45 if counts.ranked else 0.7, ends, color=colour, label=name)
            ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    return ends


def _finish(axes: Axes, *, horizontal: bool) -> None:
    """A light grid along the values, room beyond the longest bar, and a legend if there is a choice to explain."""
    axes.grid(axis="x" if horizontal else "y", color=RULE, linewidth=0.8)
    axes.tick_params(length=0)
    axes.spines["bottom" if horizontal else "left"].set_visible(False)
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.figure.legend(loc="outside lower left", ncols=len(handles), frameon=False, fontsize=8)
