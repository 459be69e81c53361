"""Figures: what they draw, and that nothing lies on anything."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from sensitune.allocation import Allocation
from sensitune.errors import ArgumentError
from sensitune.report import (
    ComparisonRow,
    figure_accuracy,
    figure_by_block,
    figure_by_operation,
    figure_heat_map,
    save_figure,
)
from sensitune.report._counts import count_subject
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline

FIGURES = [figure_by_block, figure_by_operation, figure_heat_map]


def _axes(figure: Figure) -> Axes:
    return figure.axes[0]


def _bars(figure: Figure, *, horizontal: bool) -> dict[str, list[float]]:
    """Length of each bar by the name in the legend."""
    return {
        bars.get_label(): [bar.get_width() if horizontal else bar.get_height() for bar in bars]
        for bars in _axes(figure).containers
    }


def _row(method: str, params: int, last: float | None, chosen: float | None = None) -> ComparisonRow:
    return ComparisonRow(method, params, params + 15, params / 1e6, last, chosen, None, (0,))


def test_the_most_sensitive_scalars_are_counted_by_site(sensitivity: Sensitivity) -> None:
    counts = {row.site: row.params for row in count_subject(sensitivity, 10).rows}
    assert {name: count for name, count in counts.items() if count} == {
        "blocks.1.attn.qkv.weight[v]": 8,
        "blocks.1.mlp.fc1.weight": 2,
    }
    assert list(counts) == [site.id for site in sensitivity.sites]


def test_a_score_of_zero_is_not_sensitive(sensitivity: Sensitivity) -> None:
    assert count_subject(sensitivity, 172).total == 12
    assert _axes(figure_by_block(sensitivity, tau=172)).texts[0].get_text() == "% of the 12 most sensitive parameters"


def test_blocks_of_an_allocation_are_stacked_by_how_they_are_tuned(allocation: Allocation) -> None:
    bars = _bars(figure_by_block(allocation), horizontal=False)
    assert list(bars) == ["modules", "sparse values", "whole vectors", "always trained"]
    np.testing.assert_allclose(np.array(list(bars.values())) * 0.27, [[8, 8, 0], [0, 3, 0], [4, 0, 0], [0, 0, 4]])


def test_operations_are_sorted_and_those_without_a_parameter_left_out(allocation: Allocation) -> None:
    figure = figure_by_operation(allocation)
    names = [tick.get_text() for tick in _axes(figure).get_yticklabels()]
    assert names == ["fc1", "cls_token", "norm1", "v"]
    assert [text.get_text() for text in _axes(figure).texts[1:]] == ["11.1", "14.8", "14.8", "59.3"]


def test_sensitive_blocks_stand_before_their_share_of_all_parameters(sensitivity: Sensitivity) -> None:
    bars = _bars(figure_by_block(sensitivity, tau=10), horizontal=False)
    assert bars["sensitive"] == [0.0, 100.0]
    assert bars["share of all ranked parameters"] == pytest.approx([100 * 84 / 172] * 2)


def test_the_heat_map_shows_every_block_and_operation(allocation: Allocation) -> None:
    axes = _axes(figure_heat_map(allocation))
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares.filled(0.0) * 0.27, [[4, 0, 0, 8, 0], [0, 0, 0, 8, 3]])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["norm1", "q", "k", "v", "fc1"]
    assert axes.get_xlabel() == "14.8 % lies outside the blocks"


@pytest.mark.parametrize("draw", FIGURES)
def test_titles_say_what_is_shown_and_in_which_unit(draw, allocation: Allocation, sensitivity: Sensitivity) -> None:
    trainable, sensitive = _axes(draw(allocation)), _axes(draw(sensitivity, tau=10))
    assert trainable.get_title(loc="left").startswith("Trainable parameters by ")
    assert trainable.texts[0].get_text() == "% of the 27 trainable parameters, head not counted"
    assert sensitive.get_title(loc="left").startswith("Sensitive parameters by ")
    assert sensitive.texts[0].get_text() == "% of the 10 most sensitive parameters"


@pytest.mark.parametrize("draw", FIGURES)
def test_a_sensitivity_needs_a_tau(draw, sensitivity: Sensitivity) -> None:
    with pytest.raises(ArgumentError, match="`tau` must say how many of the most sensitive parameters to show"):
        draw(sensitivity)


@pytest.mark.parametrize("draw", FIGURES)
def test_an_allocation_refuses_a_tau(draw, allocation: Allocation) -> None:
    with pytest.raises(ArgumentError, match="`tau` goes with a Sensitivity; an Allocation has its own. Got 5."):
        draw(allocation, tau=5)


@pytest.mark.parametrize("draw", FIGURES)
def test_an_allocation_of_the_head_alone_cannot_be_drawn(draw, allocation: Allocation) -> None:
    head_only = dataclasses.replace(allocation, structured={}, vectors=(), sparse={}, always_trained=())
    with pytest.raises(ArgumentError, match="Trainable parameters cannot be drawn: there are none."):
        draw(head_only)


def test_a_model_without_blocks_has_no_heat_map(outline: ModelOutline) -> None:
    flat = dataclasses.replace(outline, sites=outline.sites[-1:])
    allocation = Allocation(flat, {}, ("norm.weight",), {})
    with pytest.raises(ArgumentError, match="A heat map needs blocks; this model has none"):
        figure_heat_map(allocation)
    assert [tick.get_text() for tick in _axes(figure_by_block(allocation)).get_xticklabels()] == ["outside"]


def test_budgets_of_one_method_are_joined_and_named_once() -> None:
    figure = figure_accuracy([_row("SPT", 200, 0.76), _row("SPT", 100, 0.75), _row("LoRA", 150, 0.7)])
    lines = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in _axes(figure).lines}
    assert lines == {(100, 200): (75.0, 76.0), (150,): (70.0,)}
    assert {text.get_text() for text in _axes(figure).texts[1:]} >= {"75.0", "SPT 76.0", "LoRA 70.0"}


def test_a_method_that_trains_only_the_head_is_a_line_across() -> None:
    axes = _axes(figure_accuracy([_row("SPT", 100, 0.75), _row("Head only", 0, 0.6)]))
    across = next(line for line in axes.lines if line.get_linestyle() != "-")
    assert list(across.get_ydata()) == [60.0, 60.0]
    assert axes.get_xscale() == "log"


def test_the_head_alone_can_be_drawn() -> None:
    assert _axes(figure_accuracy([_row("Head only", 0, 0.6)])).texts[1].get_text() == "Head only 60.0"


def test_the_accuracy_of_the_chosen_epoch_can_be_drawn_instead() -> None:
    axes = _axes(figure_accuracy([_row("SPT", 100, 0.75, 0.77)], accuracy="chosen"))
    assert axes.texts[0].get_text() == (
        "% of test images classified correctly of the epoch chosen on the validation split; one seed (0) per method"
    )
    assert list(axes.lines[0].get_ydata()) == [77.0]


def test_an_unknown_accuracy_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`accuracy` must be 'last' or 'chosen'. Got 'best'."):
        figure_accuracy([_row("SPT", 100, 0.75)], accuracy="best")


def test_rows_without_the_accuracy_cannot_be_drawn() -> None:
    with pytest.raises(ArgumentError, match="No row has an accuracy after the last epoch; there is nothing to draw."):
        figure_accuracy([_row("SPT", 100, None)])


@pytest.mark.parametrize("seed", range(5))
def test_labels_lie_neither_on_one_another_nor_outside(seed: int) -> None:
    draw = np.random.default_rng(seed)
    # Four methods of the same cost and almost the same accuracy, as in a comparison under one budget.
    rows = [_row(f"Method {i}", 150_000 - int(draw.integers(9)), 0.7 + draw.uniform(0, 0.01)) for i in range(4)]
    figure = figure_accuracy([*rows, _row("Head only", 0, 0.66)])
    figure.draw_without_rendering()
    axes = _axes(figure)
    boxes = [text.get_window_extent() for text in _labels(axes)]
    assert len(boxes) == 5
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def _labels(axes: Axes) -> list[Text]:
    return [text for text in axes.texts[1:] if text.get_text()]


def test_a_figure_is_saved_as_png_and_svg(allocation: Allocation, tmp_path: Path) -> None:
    paths = save_figure(figure_heat_map(allocation), tmp_path / "figures" / "v1.0")
    assert paths == [tmp_path / "figures" / "v1.0.png", tmp_path / "figures" / "v1.0.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in paths[1].read_bytes()
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["v1.0.png", "v1.0.svg"]


def test_the_same_figure_gives_the_same_files(allocation: Allocation, tmp_path: Path) -> None:
    one, other = (save_figure(figure_by_block(allocation), tmp_path / name) for name in ("one", "other"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_figures_leave_matplotlib_and_pyplot_alone(allocation: Allocation, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save_figure(figure_by_operation(allocation), tmp_path / "figure")
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules
