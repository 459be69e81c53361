"""How every figure looks, and how it gets onto the disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sensitune._files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by the colour-blind, and in grey print by lightness.
BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
GREEN: Final = "#009E73"
PURPLE: Final = "#CC79A7"
VERMILION: Final = "#D55E00"
SKY: Final = "#56B4E9"
INK: Final = "#222222"
FAINT: Final = "#6B6B6B"
RULE: Final = "#DDDDDD"
PALE: Final = "#DCE3E8"

# How a site is tuned -> (colour, what the legend calls it), in the order in which bars are stacked.
TUNINGS: Final[Mapping[str, tuple[str, str]]] = {
    "structured": (BLUE, "modules"),
    "sparse": (ORANGE, "sparse values"),
    "vector": (GREEN, "whole vectors"),
    "always": (PURPLE, "always trained"),
}
# The same where the sparse values are a selection of the most sensitive.
SENSITIVE: Final[Mapping[str, tuple[str, str]]] = {"sparse": (BLUE, "sensitive")}

_FONT: Final[dict[Any, Any]] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so a figure looks the same everywhere
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "sensitune",  # the same figure gives the same file
}


def style() -> AbstractContextManager[None]:
    """The context in which figures are made and saved; the user's own settings are back afterwards."""
    import matplotlib as mpl

    return mpl.rc_context(_FONT)


def new_figure(width: float, height: float, *, title: str, subtitle: str) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes, made without pyplot: it needs no display and is never left open.

    Args:
        width: Width in inches.
        height: Height in inches.
        title: What the figure shows.
        subtitle: Of what, in which unit.

    Returns:
        The figure and its axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=25)
    axes.annotate(
        subtitle,
        (0, 1),
        (0, 9),
        xycoords="axes fraction",
        textcoords="offset points",
        color=FAINT,
        annotation_clip=False,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def save_figure(figure: Figure, stem: str | os.PathLike[str]) -> list[Path]:
    """Write a figure as PNG (200 dots per inch) and as SVG, each whole or not at all.

    Args:
        figure: The figure.
        stem: The path without its ending; the folder is created.

    Returns:
        The paths of the two files, PNG first.
    """
    target = Path(stem)
    paths = [target.with_name(f"{target.name}.{ending}") for ending in ("png", "svg")]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        with style(), atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=200, metadata=metadata, facecolor="white")
    return paths
