"""Labels beside their points that do not lie on one another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sensitune.report._style import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_DIRECTIONS = (0, 180, 90, 270, 45, 315, 135, 225, 22, 338, 158, 202)  # degrees, the best to read first
_DISTANCES = (8, 16, 28, 42, 58)  # typographic points; from the second on, a thin line leads to the point
_POINT_RADIUS = 5.0


@dataclass(frozen=True, slots=True)
class LabelledPoint:
    """A point in data coordinates and its text; a line across the axes is labelled at its left end, above it."""

    x: float
    y: float
    text: str
    is_line: bool = False


def place_labels(axes: Axes, points: Sequence[LabelledPoint]) -> None:
    """Write each label at the nearest place that is free of markers, lines, other labels and the edge of the axes.

    Where no place is free, the one that covers least is taken. Limits, titles and axis labels must be set before.

    Args:
        axes: The axes that hold the points.
        points: What to label, the most important first.
    """
    from matplotlib.patheffects import withStroke

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles the layout, so that text has a size
    halo = withStroke(linewidth=3, foreground="white")  # grid lines stop short of the letters
    taken = [_marker_box(axes, point) for point in points if not point.is_line]
    taken += [box for line in axes.get_lines() for box in _line_boxes(line)]
    for point in sorted(points, key=lambda point: not point.is_line):  # a line's label has only one place
        label = axes.annotate(point.text, (point.x, point.y), (6, 5), textcoords="offset points", fontsize=8.5)
        label.set_path_effects([halo])
        if not point.is_line:
            _settle(axes, label, taken)
        taken.append(label.get_window_extent())
        label.set_in_layout(False)


def _settle(axes: Axes, label: Annotation, taken: Sequence[Bbox]) -> None:
    best = min(_places(), key=lambda place: _cost(axes, label, place, taken))
    _move(label, best)
    if best[1] > _DISTANCES[0]:
        axes.annotate(
            "",
            label.xy,
            label.xyann,
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
        )


def _places() -> Iterator[tuple[int, int]]:
    return ((direction, distance) for distance in _DISTANCES for direction in _DIRECTIONS)


def _move(label: Annotation, place: tuple[int, int]) -> None:
    direction, distance = place
    right, up = math.cos(math.radians(direction)), math.sin(math.radians(direction))
    label.xyann = (distance * right, distance * up)
    label.set_horizontalalignment("left" if right > 0.3 else "right" if right < -0.3 else "center")
    label.set_verticalalignment("bottom" if up > 0.6 else "top" if up < -0.6 else "center")


def _cost(axes: Axes, label: Annotation, place: tuple[int, int], taken: Sequence[Bbox]) -> float:
    """Square pixels that the label would cover at this place, or have outside the axes."""
    _move(label, place)
    box = label.get_window_extent()
    covered = sum(_overlap(box, other) for other in taken)
    outside = float(box.width * box.height) - _overlap(box, axes.bbox)
    return covered + outside


def _overlap(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(width, 0.0) * max(height, 0.0))


def _marker_box(axes: Axes, point: LabelledPoint) -> Bbox:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((point.x, point.y))
    radius = _POINT_RADIUS * axes.figure.dpi / 72
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _line_boxes(line: Line2D) -> Iterator[Bbox]:
    """Small boxes along a line, close enough that no label fits between two."""
    from matplotlib.transforms import Bbox

    corners = line.get_transform().transform(line.get_xydata())
    for start, stop in pairwise(corners):
        for x, y in np.linspace(start, stop, num=2 + int(np.abs(stop - start).max() // 4)):
            yield Bbox.from_extents(x - 1, y - 1, x + 1, y + 1)
