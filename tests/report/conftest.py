"""A model of two blocks, small enough to count by hand, with its scores and an allocation."""

from __future__ import annotations

import pytest
import torch
from made_sites import make_site, make_slices

from sensitune.allocation import Allocation
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline, Site


def _sites(block: int) -> list[Site]:
    prefix = f"blocks.{block}"
    return [
        make_site(f"{prefix}.norm1.weight", (4,), block=block, operation="norm1"),
        *make_slices(f"{prefix}.attn.qkv.weight", "qkv", (4, 4), block=block),
        make_site(f"{prefix}.mlp.fc1.weight", (8, 4), block=block, operation="fc1"),
    ]


@pytest.fixture
def outline() -> ModelOutline:
    norm = make_site("norm.weight", (4,), operation="norm")
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
        structured={"blocks.0.attn.qkv.weight[v]": 1, "blocks.1.attn.qkv.weight[v]": 1},
        vectors=("blocks.0.norm1.weight",),
        sparse={"blocks.1.mlp.fc1.weight": torch.tensor([0, 5, 31])},
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
