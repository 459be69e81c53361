"""Properties that hold for every allocation, over random ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_properties import assert_merged_equals_unmerged, assert_reload_equals, assert_unmerging_restores
from peft import get_peft_model
from torch import nn
from tuned_models import count_trained, make_allocation, seeded, trained, tune

from sensitune.allocation import Allocation, allocate
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.sites import outline_model
from sensitune.tuner import SptConfig


class Block(nn.Module):
    """A fused projection, a matrix, a norm and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.qkv = nn.Linear(6, 18)
        self.proj = nn.Linear(6, 6, bias=False)
        self.gamma = nn.Parameter(torch.full((6,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.gamma * self.proj(torch.tanh(q) * k + v)


class Small(nn.Module):
    """Two blocks behind a class token, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.full((1, 1, 6), 0.1))
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(6, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1))[:, 0])


def small(dtype: torch.dtype = torch.float64) -> Small:
    return seeded(Small, dtype=dtype)


INPUTS = torch.randn(5, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OUTLINE = outline_model(small())


@st.composite
def allocations(draw: Callable[..., object], structured: tuple[str, ...] = ("lora", "adapter")) -> Allocation:
    """Any allocation of the small model: every site may be structured at any rank, whole, sparse or frozen."""
    modules, vectors, sparse = {}, [], {}
    for site in OUTLINE.sites:
        ways = {"matrix": ["frozen", "sparse", "module"], "vector": ["frozen", "sparse", "whole"]}[site.kind]
        way = draw(st.sampled_from(ways))
        if way == "module":
            modules[site.id] = draw(st.integers(1, 5))
        elif way == "whole":
            vectors.append(site.id)
        elif way == "sparse":
            chosen = draw(st.sets(st.integers(0, site.numel - 1), min_size=1, max_size=9))
            sparse[site.id] = torch.tensor(sorted(chosen))
    kind = draw(st.sampled_from(structured))
    return make_allocation(OUTLINE, modules=modules, vectors=vectors, sparse=sparse, structured=kind)


def scored(model: nn.Module) -> Sensitivity:
    return estimate_sensitivity(model, [(INPUTS, torch.tensor([0, 1, 2, 0, 1]))])


@settings(max_examples=30, deadline=None)
@given(allocation=allocations())
def test_the_model_trains_exactly_what_the_allocation_says_and_the_head(allocation: Allocation) -> None:
    assert count_trained(tune(small(), allocation)) == allocation.trainable_params + allocation.head_params


@settings(max_examples=25, deadline=None)
@given(allocation=allocations(structured=("lora",)))
def test_merged_equals_unmerged(allocation: Allocation) -> None:
    assert_merged_equals_unmerged(tune(small(), allocation), INPUTS)


@settings(max_examples=25, deadline=None)
@given(allocation=allocations(structured=("lora",)), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_unmerging_restores_every_weight_bit_for_bit(allocation: Allocation, dtype: torch.dtype) -> None:
    assert_unmerging_restores(tune(small(dtype), allocation).to(dtype))


@settings(max_examples=15, deadline=None)
@given(allocation=allocations())
def test_a_saved_and_loaded_adapter_gives_the_same_output(allocation: Allocation) -> None:
    with TemporaryDirectory() as folder:
        assert_reload_equals(tune(small(), allocation), small(), folder, INPUTS)


@settings(max_examples=15, deadline=None)
@given(allocation=allocations())
def test_an_allocation_survives_its_file_and_trains_the_same_places(allocation: Allocation) -> None:
    with TemporaryDirectory() as folder:
        allocation.save(Path(folder) / "allocation.safetensors")
        loaded = Allocation.load(Path(folder) / "allocation.safetensors")
    shapes, again = (
        {name: parameter.shape for name, parameter in trained(tune(small(), each)).items()}
        for each in (allocation, loaded)
    )
    assert shapes == again


@settings(max_examples=25, deadline=None)
@given(budget=st.integers(7, 138))
def test_the_tuned_model_costs_the_budget(budget: int) -> None:
    allocation = allocate(scored(small()), budget=budget, rank=1)
    model = get_peft_model(small(), SptConfig.from_allocation(allocation))
    assert count_trained(model) - allocation.head_params == budget


@pytest.mark.parametrize("budget", [20, 60, 130])
def test_renaming_modules_changes_nothing(budget: int) -> None:
    """Other names for the blocks and their layers: the same places are chosen, the same output comes out."""

    class Renamed(Small):
        def __init__(self) -> None:
            super().__init__()
            self.stages = self.blocks
            del self.blocks
            for block in self.stages:
                block.after = block.proj
                del block.proj

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
            for block in self.stages:
                q, k, v = block.qkv(block.norm(x)).chunk(3, -1)
                x = x + block.gamma * block.after(torch.tanh(q) * k + v)
            return self.head(x[:, 0])

    def rename(name: str) -> str:
        return name.replace("blocks.", "stages.").replace(".proj.", ".after.")

    plain, renamed = small(), Renamed().double().eval()
    renamed.load_state_dict({rename(name): value for name, value in plain.state_dict().items()})
    ours, theirs = allocate(scored(plain), budget=budget, rank=1), allocate(scored(renamed), budget=budget, rank=1)
    assert sorted(map(rename, ours.structured)) == sorted(theirs.structured)
    assert sorted(map(rename, ours.vectors)) == sorted(theirs.vectors)
    assert {rename(name): index.tolist() for name, index in ours.sparse.items()} == {
        name: index.tolist() for name, index in theirs.sparse.items()
    }
