"""Accuracy against trainable parameters: what a method reaches for what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from sensitune.errors import ArgumentError
from sensitune.report._comparison import ComparisonRow, describe_seeds
from sensitune.report._labels import LabelledPoint, place_labels
from sensitune.report._style import BLUE, FAINT, GREEN, ORANGE, PURPLE, RULE, SKY, VERMILION, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
_MARKERS = ("o", "s", "D", "^", "v", "P")
_WHEN = {"last": "after the last epoch", "chosen": "of the epoch chosen on the validation split"}


def figure_accuracy(rows: Sequence[ComparisonRow], *, accuracy: Literal["last", "chosen"] = "last") -> Figure:
    """Draw test accuracy over trainable parameters; rows of one method are joined by a line.

    A method that trains nothing but the head has no place on a logarithmic axis and becomes a dashed line.

    Args:
        rows: One per method and budget; those without the accuracy asked for are left out.
        accuracy: ``"last"`` (after the last epoch) or ``"chosen"`` (the epoch that validation chose).

    Returns:
        A matplotlib figure; `save_figure` writes it.

    Raises:
        ArgumentError: If `accuracy` is unknown, or no row has it.
    """
    if accuracy not in _WHEN:
        raise ArgumentError(f"`accuracy` must be 'last' or 'chosen'. Got {accuracy!r}.")
    measured = [(row, value) for row in rows if (value := getattr(row, f"{accuracy}_accuracy")) is not None]
    if not measured:
        raise ArgumentError(f"No row has an accuracy {_WHEN[accuracy]}; there is nothing to draw.")
    subtitle = (
        f"% of test images classified correctly {_WHEN[accuracy]}; {describe_seeds([row for row, _ in measured])}"
    )
    with style():
        figure, axes = new_figure(6.8, 4.4, title="Accuracy against trainable parameters", subtitle=subtitle)
        _set_limits(axes, [row.trainable_params for row, _ in measured], [100 * value for _, value in measured])
        points = _draw_methods(axes, measured)
        axes.set_xlabel("trainable parameters, head not counted (log scale)")
        axes.grid(color=RULE, linewidth=0.8)
        axes.tick_params(length=0, which="both")
        place_labels(axes, points)
    return figure


def _set_limits(axes: Axes, params: Sequence[int], percents: Sequence[float]) -> None:
    """Room for the labels around the outermost points, and ticks that a reader can name."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    positive = [count for count in params if count] or [1]
    low, high = min(positive), max(positive)
    axes.set_xscale("log")
    axes.set_xlim(low / 2.5, high * 2.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    spread = max(max(percents) - min(percents), 2.0)
    axes.set_ylim(max(0.0, min(percents) - 0.25 * spread), min(101.0, max(percents) + 0.25 * spread))


def _draw_methods(axes: Axes, measured: Sequence[tuple[ComparisonRow, float]]) -> list[LabelledPoint]:
    labels: list[LabelledPoint] = []
    for index, method in enumerate(dict.fromkeys(row.method for row, _ in measured)):
        points = sorted((row.trainable_params, 100 * value) for row, value in measured if row.method == method)
        labels += _draw_head_only(axes, method, [point for point in points if not point[0]])
        labels += _draw_line(axes, method, [point for point in points if point[0]], index)
    return labels


def _draw_head_only(axes: Axes, method: str, points: Sequence[tuple[int, float]]) -> list[LabelledPoint]:
    for _, percent in points:
        axes.axhline(percent, color=FAINT, linestyle=(0, (5, 3)), linewidth=1.2)
    return [
        LabelledPoint(axes.get_xlim()[0], percent, f"{method} {percent:.1f}", is_line=True) for _, percent in points
    ]


def _draw_line(axes: Axes, method: str, points: Sequence[tuple[int, float]], index: int) -> list[LabelledPoint]:
    """One marker per budget; the last is labelled with the method's name, each with its accuracy."""
    if not points:
        return []
    counts, percents = zip(*points, strict=True)
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    axes.plot(counts, percents, color=colour, marker=marker, markersize=8, markeredgecolor="white", linewidth=1.2)
    texts = [*(f"{percent:.1f}" for percent in percents[:-1]), f"{method} {percents[-1]:.1f}"]
    return [LabelledPoint(x, y, text) for x, y, text in zip(counts, percents, texts, strict=True)]
