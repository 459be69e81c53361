"""An allocation over the nodes of a graph."""

from __future__ import annotations

import json
from pathlib import Path

from sensitune.allocation import Allocation
from sensitune.report import write_node_data


def test_a_node_has_the_parameters_that_it_takes(allocation: Allocation, tmp_path: Path) -> None:
    nodes = {
        "cls_token": ["p_cls_token", "expand"],
        "blocks.0.norm1.weight": ["p_norm", "layer_norm"],
        "blocks.0.attn.qkv.weight": ["p_qkv", "linear"],
        "blocks.0.mlp.fc1.weight": ["p_fc1", "linear_1"],
        "pos_embed": ["p_pos", "expand"],
    }
    path = write_node_data(tmp_path / "nodes.json", allocation, nodes)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert {name: found["value"] for name, found in content["results"].items()} == {
        "p_cls_token": 4,
        "expand": 4,
        "p_norm": 4,
        "layer_norm": 4,
        "p_qkv": 8,  # of its three slices one has a module
        "linear": 8,
        "p_fc1": 0,
        "linear_1": 0,
        "p_pos": 0,
    }
    stops = [each["stop"] for each in content["gradient"]]
    assert [stops[0], stops[-1]] == [0, 1]
