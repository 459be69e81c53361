"""An allocation over the nodes of an exported graph, as Google's Model Explorer reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sensitune._files import atomic_write
from sensitune.allocation import Allocation

_GRADIENT = (
    {"stop": 0, "bgColor": "#ffffff", "textColor": "#000000"},
    {"stop": 0.5, "bgColor": "#6baed6", "textColor": "#000000"},
    {"stop": 1, "bgColor": "#08519c", "textColor": "#ffffff"},
)


def write_node_data(path: str | os.PathLike[str], allocation: Allocation, nodes: Mapping[str, Sequence[str]]) -> Path:
    """Write how many parameters are trained at each node, in Model Explorer's format for data of one graph.

    Args:
        path: The JSON file.
        allocation: What is tuned.
        nodes: Parameter -> names of the nodes that stand for it: its own, and those of the operations that take it,
            which get the sum over all parameters that they take.

    Returns:
        The path.
    """
    values: dict[str, int] = {name: 0 for names in nodes.values() for name in names}
    for row in allocation.table():
        parameter = row.site if row.tuning == "always" else allocation.site(row.site).parameter
        for name in nodes.get(parameter, ()):
            values[name] += row.params
    content = {
        "name": "Sensitune: trainable parameters",
        "results": {name: {"value": value} for name, value in values.items()},
        "gradient": _GRADIENT,
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return Path(path)
