"""A map: blocks down, operations across."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sensitune.allocation import Allocation
from sensitune.errors import ArgumentError
from sensitune.report._counts import Counts, count_subject
from sensitune.report._style import FAINT, INK, new_figure, style
from sensitune.sensitivity import Sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure_heat_map(subject: Allocation | Sensitivity, *, tau: int | None = None) -> Figure:
    """Draw the share of every operation of every block; a dot is none.

    Args:
        subject: An allocation (its trainable parameters) or a sensitivity (its most sensitive parameters).
        tau: How many of the most sensitive parameters; only with a sensitivity.

    Returns:
        A matplotlib figure; `save_figure` writes it. What lies outside the blocks is named below the map.

    Raises:
        ArgumentError: If `tau` is missing or out of place, every count is zero, or the model has no blocks.
    """
    counts = count_subject(subject, tau)
    blocks = sorted({row.block for row in counts.rows if row.block is not None})
    operations = list(dict.fromkeys(row.operation for row in counts.rows if row.block is not None))
    if not blocks:
        raise ArgumentError("A heat map needs blocks; this model has none. Use `figure_by_operation`.")
    shares = _shares(counts, blocks, operations)
    with style():
        width, height = 2.4 + 0.56 * len(operations), 1.9 + 0.27 * len(blocks)
        title = f"{counts.title} by block and operation"
        figure, axes = new_figure(max(width, 5.6), height, title=title, subtitle=f"% of {counts.whole}")
        _draw_cells(axes, shares)
        axes.set_yticks(range(len(blocks)), map(str, blocks))
        axes.set_xticks(range(len(operations)), [_folded(name) for name in operations])
        axes.set_ylabel("block")
        outside = max(0.0, 100 - float(shares.sum()))
        if any(row.block is None and row.params for row in counts.rows):
            axes.set_xlabel(f"{outside:.1f} % lies outside the blocks", loc="left", fontsize=8)
    return figure


def _shares(
    counts: Counts, blocks: list[int], operations: list[str]
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Percent of the total, shape [blocks, operations]."""
    shares = np.zeros((len(blocks), len(operations)))
    for row in counts.rows:
        if row.block is not None:
            shares[blocks.index(row.block), operations.index(row.operation)] += 100 * row.params / counts.total
    return shares


def _folded(name: str) -> str:
    """A long name over several lines, so that it stays within its column."""
    return name.replace("_", "_\n").replace(".", ".\n") if len(name) > 8 else name


def _draw_cells(axes: Axes, shares: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
    drawn = np.ma.masked_equal(shares, 0.0)
    axes.imshow(drawn, cmap="Blues", vmin=0.0, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        text = "·" if not share else "<0.1" if share < 0.05 else f"{share:.1f}"
        colour = "white" if share > 0.6 * shares.max() else INK if share else FAINT
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(shares.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(shares.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
