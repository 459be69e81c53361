"""The charts of a page, in Vega-Lite; the page's script fills in the rows and shows the same choice in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ROWS = "rows"
"""Name of the data that the script fills in: one row per block and operation."""

_PICKED = " && ".join(f"(picked_{name} == null || datum.{name} == picked_{name})" for name in ("block", "operation"))
_CLICKED = [{"name": "picked_block", "value": None}, {"name": "picked_operation", "value": None}]


def map_chart(blocks: Sequence[str], operations: Sequence[str]) -> dict[str, Any]:
    """Blocks down, operations across; a cell says its value, so that its colour need not.

    Args:
        blocks: Names of the blocks, in order.
        operations: Names of the operations, in order.

    Returns:
        A Vega-Lite specification.
    """
    import altair as alt

    base = (
        alt.Chart(alt.NamedData(ROWS))
        .transform_joinaggregate(top="max(value)")
        .encode(
            x=alt.X("operation:N", sort=list(operations), axis=alt.Axis(orient="top", labelAngle=-50, title=None)),
            y=alt.Y("block:N", sort=list(blocks), title="block"),
            tooltip=_tooltip(),
        )
    )
    cells = base.mark_rect(cursor="pointer").encode(
        color=alt.Color("value:Q", scale=alt.Scale(scheme="blues", domainMin=0), legend=None),
        opacity=alt.condition(_PICKED, alt.value(1), alt.value(0.25)),
    )
    words = base.mark_text(fontSize=9, cursor="pointer").encode(
        text="shown:N",
        color=alt.condition("datum.value > 0.55 * datum.top", alt.value("#ffffff"), alt.value("#0b2540")),
    )
    chart = (cells + words).properties(width="container", height=max(120, 24 * len(blocks)))
    return _finished(chart)


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
        .mark_bar(cursor="pointer", stroke="#888888", strokeWidth=0.4)
        .encode(
            y=alt.Y("block:N", sort=list(blocks), title="block"),
            x=alt.X("params:Q", title="trainable parameters", axis=alt.Axis(format="~s", tickCount=4)),
            color=alt.Color(
                "operation:N", sort=list(operations), legend=alt.Legend(orient="bottom", columns=4, title=None)
            ),
            order=alt.Order("place:Q"),
            opacity=alt.condition(_PICKED, alt.value(1), alt.value(0.25)),
            tooltip=_tooltip(),
        )
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
    spec: dict[str, Any] = chart.to_dict()
    return spec


def _tooltip() -> list[Any]:
    import altair as alt

    return [
        alt.Tooltip("block:N"),
        alt.Tooltip("operation:N"),
        alt.Tooltip("params:Q", title="trainable parameters", format=","),
        alt.Tooltip("how:N", title="tuned"),
    ]


def _finished(chart: Any) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec["params"] = [*spec.get("params", []), *_CLICKED]
    return spec
