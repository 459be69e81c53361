"""The charts of a page, in Vega-Lite; the page's script fills in the rows and shows the same choice in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

ROWS = "rows"
"""Name of the data that the script fills in: one row per block and operation."""

_PICKED = " && ".join(f"(picked_{name} == null || datum.{name} == picked_{name})" for name in ("block", "operation"))
_SIDES: tuple[tuple[Literal["left", "right"], int], ...] = (("left", 7), ("right", -7))
_OVER = "over_block == datum.block && over_operation == datum.operation"
_SIGNALS = [
    *({"name": f"{what}_{name}", "value": None} for what in ("picked", "over") for name in ("block", "operation")),
    {"name": "top", "value": 1},
]


def map_chart(blocks: Sequence[str], operations: Sequence[str], *, signed: bool = False) -> dict[str, Any]:
    """Blocks down, operations across; a cell says its value, so that its colour need not.

    Args:
        blocks: Names of the blocks, in order.
        operations: Names of the operations, in order.
        signed: Whether values may be below zero, which then is the middle of the colours.

    Returns:
        A Vega-Lite specification.
    """
    import altair as alt

    base = alt.Chart(alt.NamedData(ROWS)).encode(
        x=alt.X(
            "operation:N",
            scale=alt.Scale(domain=list(operations)),
            axis=alt.Axis(orient="top", labelAngle=-50, title=None),
        ),
        y=alt.Y("block:N", scale=alt.Scale(domain=list(blocks)), title="block"),
        tooltip=_tooltip(),
    )
    top = alt.ExprRef("top")  # set by the script, so that several maps can share it
    scale = (
        alt.Scale(scheme="redblue", domainMin=alt.ExprRef("-top"), domainMax=top)
        if signed
        else alt.Scale(scheme="blues", domainMin=0, domainMax=top)
    )
    cells = (
        base.mark_rect(cursor="pointer", stroke="#e07b00")
        .encode(
            color=alt.Color("value:Q", scale=scale, legend=None),
            opacity=alt.condition(_PICKED, alt.value(1), alt.value(0.25)),
            strokeWidth=alt.condition(_OVER, alt.value(3), alt.value(0)),
        )
        .add_params(_pointer())
    )
    words = base.mark_text(fontSize=_small_letters(operations), cursor="pointer").encode(
        text="shown:N",
        color=alt.condition("abs(datum.value) > 0.55 * top", alt.value("#ffffff"), alt.value("#0b2540")),
    )
    return _finished((cells + words).properties(width="container", height=max(120, 24 * len(blocks))))


def block_chart(blocks: Sequence[str], operations: Sequence[str]) -> dict[str, Any]:
    """The model as stacked blocks, as wide as their parameters.

    Args:
        blocks: Names of the blocks, in order.
        operations: Names of the operations, in order.

    Returns:
        A Vega-Lite specification.
    """
    import altair as alt

    chart = (
        alt.Chart(alt.NamedData(ROWS))
        .mark_bar(cursor="pointer")
        .encode(
            y=alt.Y("block:N", scale=alt.Scale(domain=list(blocks)), title="block"),
            x=alt.X("params:Q", title="trainable parameters", axis=alt.Axis(format="~s", tickCount=4)),
            color=alt.Color(
                "operation:N",
                scale=alt.Scale(domain=list(operations), scheme="tableau20"),
                legend=alt.Legend(orient="bottom", columns=4, title=None),
            ),
            order=alt.Order("place:Q"),
            opacity=alt.condition(_PICKED, alt.value(1), alt.value(0.25)),
            stroke=alt.condition(_OVER, alt.value("#e07b00"), alt.value("#888888")),
            strokeWidth=alt.condition(_OVER, alt.value(3), alt.value(0.4)),
            tooltip=_tooltip(),
        )
        .add_params(_pointer())
        .properties(width="container", height=max(120, 24 * len(blocks)))
    )
    return _finished(chart)


def curve_chart(rows: Sequence[dict[str, float | None]], field: str, title: str) -> dict[str, Any]:
    """A number of every epoch.

    Args:
        rows: With ``epoch`` and the field.
        field: Which number.
        title: What it is.

    Returns:
        A Vega-Lite specification.
    """
    import altair as alt

    chart = (
        alt.Chart(alt.InlineData(values=[{"epoch": row["epoch"], field: row[field]} for row in rows]))
        .mark_line(point=True)
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(format="d", tickMinStep=1, tickCount=min(10, max(1, len(rows) - 1)))),
            y=alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False)),
            tooltip=["epoch:Q", alt.Tooltip(f"{field}:Q", title=title, format=".4f")],
        )
        .properties(width="container", height=180)
    )
    return _spec(chart)


def confusion_chart(class_names: Sequence[str]) -> dict[str, Any]:
    """Right classes down, predicted ones across; a cell says how many images it has.

    The rows have ``truth``, ``said``, ``count`` and ``share``, the cell's part of all images of its right class.

    Args:
        class_names: Names of the classes, in order.

    Returns:
        A Vega-Lite specification.
    """
    import altair as alt

    scale, limit = alt.Scale(domain=list(class_names)), 130
    base = alt.Chart(alt.NamedData(ROWS)).encode(
        x=alt.X(
            "said:N",
            scale=scale,
            axis=alt.Axis(orient="top", labelAngle=-50, title="taken for", labelLimit=limit),
        ),
        y=alt.Y("truth:N", scale=scale, title="is", axis=alt.Axis(labelLimit=limit)),
        tooltip=[
            alt.Tooltip("truth:N", title="is"),
            alt.Tooltip("said:N", title="taken for"),
            alt.Tooltip("count:Q", title="images", format=","),
            alt.Tooltip("share:Q", title="of its class", format=".1%"),
        ],
    )
    cells = base.mark_rect().encode(
        color=alt.Color("share:Q", scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=None)
    )
    words = base.mark_text(fontSize=_small_letters(class_names)).encode(
        text=alt.Text("count:Q", format=","),
        color=alt.condition("datum.share > 0.55", alt.value("#ffffff"), alt.value("#0b2540")),
    )
    return _spec((cells + words).properties(width="container", height=max(120, 22 * len(class_names))))


def accuracy_chart(*, params: bool, lines: int = 0) -> dict[str, Any]:
    """Accuracies with their intervals: against what they cost, or one line each.

    The rows have ``label``, ``params``, ``percent`` and, where there is an interval, ``low`` and ``high``.

    Args:
        params: Whether they are drawn against their trainable parameters.
        lines: How many there are, if not.

    Returns:
        A Vega-Lite specification.
    """
    import altair as alt

    percent = "test accuracy in per cent"
    tooltip = [
        alt.Tooltip("label:N", title="what"),
        alt.Tooltip("percent:Q", title=percent, format=".1f"),
        alt.Tooltip("interval:N", title="95 % interval"),
        alt.Tooltip("params:Q", title="trainable parameters", format=","),
    ]
    base = alt.Chart(alt.NamedData(ROWS))
    across = alt.Scale(zero=False, padding=20, nice=False)
    y = alt.Y("label:N", sort=None, title=None, axis=alt.Axis(labelLimit=180))
    bars = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=1.5)
        .encode(y=y, x=alt.X("low:Q", title=percent), x2="high:Q")
    )
    dots = base.encode(y=y, x=alt.X("percent:Q", title=percent, scale=across), tooltip=tooltip)
    if params:
        # Without the intervals, which would lie on one another where methods spend one budget.
        axis = alt.Axis(labelExpr="datum.value ? format(datum.value, '~s') : '0'", tickCount=5)
        dots = base.transform_filter("isValid(datum.params)").encode(
            x=alt.X("params:Q", title="trainable parameters", axis=axis, scale=across),
            y=alt.Y("percent:Q", title=percent, scale=across),
            tooltip=tooltip,
        )
    points = dots.mark_point(size=70, filled=True, color="#1f77b4", opacity=1)
    if not params:
        return _spec(alt.layer(bars, points).properties(width="container", height=40 + 28 * lines))
    # Names stand inwards of their points, in turn above and below: methods of one budget share a place.
    inwards = dots.transform_joinaggregate(first="min(params)", last="max(params)").transform_calculate(
        side="2 * datum.params > datum.first + datum.last ? 'right' : 'left'"
    )
    names = [
        inwards.transform_calculate(name=f"datum.side == '{align}' && datum.place % 2 == {turn} ? datum.label : ''")
        .mark_text(align=align, dx=dx, dy=dy, fontSize=11, limit=160)
        .encode(text="name:N")
        for align, dx in _SIDES
        for turn, dy in ((0, -8), (1, 10))
    ]
    return _spec(alt.layer(points, *names).properties(width="container", height=260))


def _small_letters(columns: Sequence[str]) -> Any:
    """Letters of a size that five of them fit into a cell, within reason."""
    import altair as alt

    return alt.ExprRef(f"max(6, min(9, width / {len(columns)} / 3))")


def _pointer() -> Any:
    import altair as alt

    return alt.selection_point(name="over", on="pointerover", clear="pointerout", fields=["block", "operation"])


def _tooltip() -> list[Any]:
    import altair as alt

    return [
        alt.Tooltip("block:N"),
        alt.Tooltip("operation:N"),
        alt.Tooltip("params:Q", title="trainable parameters", format=","),
        alt.Tooltip("how:N", title="tuned"),
    ]


def _finished(chart: Any) -> dict[str, Any]:
    spec = _spec(chart)
    spec["params"] = [*spec.get("params", []), *_SIGNALS]
    return spec


def _spec(chart: Any) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict(validate=False)
    return spec
