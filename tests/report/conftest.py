"""A model of two blocks, small enough to count by hand, with its scores and an allocation."""

from __future__ import annotations

import pytest
import torch

from sensitune.allocation import Allocation
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline, Site


def _sites(block: int) -> list[Site]:
    prefix = f"blocks.{block}"
    return [
        Site(f"{prefix}.norm1.weight", f"{prefix}.norm1.weight", None, "vector", block, "norm1", (4,)),
        Site(f"{prefix}.attn.qkv.weight[q]", f"{prefix}.attn.qkv.weight", (0, 4), "matrix", block, "q", (4, 4)),
        Site(f"{prefix}.attn.qkv.weight[k]", f"{prefix}.attn.qkv.weight", (4, 8), "matrix", block, "k", (4, 4)),
        Site(f"{prefix}.attn.qkv.weight[v]", f"{prefix}.attn.qkv.weight", (8, 12), "matrix", block, "v", (4, 4)),
        Site(f"{prefix}.mlp.fc1.weight", f"{prefix}.mlp.fc1.weight", None, "matrix", block, "fc1", (8, 4)),
    ]


@pytest.fixture
def outline() -> ModelOutline:
    norm = Site("norm.weight", "norm.weight", None, "vector", None, "norm", (4,))
    return ModelOutline(
        sites=(*_sites(0), *_sites(1), norm),
        head=("head",),
        head_params=15,
        always_trained={"cls_token": (1, 1, 4)},
        frozen={"pos_embed": "position embedding"},
        backbone_params=200,
    )


@pytest.fixture
def allocation(outline: ModelOutline) -> Allocation:
    """8 + 8 parameters of LoRA of rank 1, a whole vector of 4, 3 sparse values, a token of 4: 27."""
    return Allocation(
        outline=outline,
        structured=("blocks.0.attn.qkv.weight[v]", "blocks.1.attn.qkv.weight[v]"),
        vectors=("blocks.0.norm1.weight",),
        sparse={"blocks.1.mlp.fc1.weight": torch.tensor([0, 5, 31])},
        rank=1,
        structured_type="lora",
        tau=10,
        always_trained=("cls_token",),
    )


@pytest.fixture
def sensitivity(outline: ModelOutline) -> Sensitivity:
    """The highest scores lie in block 1's v, then fc1; everything else is zero."""
    scores = {"norm.weight": torch.zeros(4)}
    for block in (0, 1):
        scores[f"blocks.{block}.norm1.weight"] = torch.zeros(4)
        scores[f"blocks.{block}.attn.qkv.weight"] = torch.zeros(12, 4)
        scores[f"blocks.{block}.mlp.fc1.weight"] = torch.zeros(8, 4)
    scores["blocks.1.attn.qkv.weight"][8:10] = 9.0
    scores["blocks.1.mlp.fc1.weight"][0] = 5.0
    return Sensitivity(scores=scores, outline=outline, metadata={})
