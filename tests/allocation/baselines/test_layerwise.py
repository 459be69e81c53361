"""The same share of every linear layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sites import make_slices
from newer import from_newer
from peft import get_peft_model
from torch import nn

from sensitune.allocation import Allocation, layerwise_allocation
from sensitune.errors import BudgetError
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.sites import ModelOutline

Make = Callable[..., ModelOutline]
Scores = Callable[..., Sensitivity]
MATRICES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5)


def entries(allocation: Allocation) -> dict[str, list[int]]:
    return {name: indices.tolist() for name, indices in allocation.sparse.items()}


@given(shapes=MATRICES, seed=st.integers(0, 9), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_layer_gives_its_highest_scores_and_the_same_share(
    make_outline: Make, make_scores: Scores, shapes: list[tuple[int, int]], seed: int, data: st.DataObject
) -> None:
    sensitivity = make_scores(make_outline([*shapes, (5,)], token=3), seed)
    total = sum(rows * columns for rows, columns in shapes)
    count = data.draw(st.integers(0, total))
    allocation = layerwise_allocation(sensitivity, budget=3 + count)
    assert allocation.trainable_params == allocation.budget == 3 + count
    for site in sensitivity.sites[:-1]:
        chosen = allocation.sparse.get(site.id, torch.empty(0, dtype=torch.int64))
        assert abs(chosen.numel() - site.numel * count / total) < 1
        best = sensitivity.score_of(site).flatten().topk(chosen.numel()).indices
        assert torch.equal(chosen, best.sort().values)


def test_on_magnitudes_it_chooses_what_pefts_super_tuning_chooses() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 30), nn.Linear(30, 10)).eval()
    sensitivity = estimate_sensitivity(model, None, criterion="magnitude")
    ours = layerwise_allocation(sensitivity, budget=275)  # a quarter of 1,100
    config = from_newer("peft", "SupertuningConfig")(target_modules=["0", "1", "2"], sparsity=0.75)
    theirs = get_peft_model(model, config).base_model.model
    for name in ("0", "1", "2"):
        chosen = theirs[int(name)].supertuning_indices["default"].long().sort().values
        assert torch.equal(ours.sparse[f"{name}.weight"], chosen)
    assert ours.trainable_params == 275


def test_the_slices_of_a_fused_projection_share_one_ranking() -> None:
    outline = ModelOutline(make_slices("qkv.weight", "qkv", (2, 5)), ("head",), 0, {}, {}, 30)
    scores = torch.arange(30.0).reshape(6, 5)  # the highest are all in v
    allocation = layerwise_allocation(Sensitivity({"qkv.weight": scores}, outline, {}), budget=12)
    assert entries(allocation) == {"qkv.weight[k]": [8, 9], "qkv.weight[v]": list(range(10))}


def test_a_score_of_zero_is_never_chosen(make_outline: Make, make_scores: Scores) -> None:
    sensitivity = make_scores(make_outline([(4, 5), (4, 5)]))
    sensitivity.scores["blocks.0.matrix"][1:] = 0
    allocation = layerwise_allocation(sensitivity, budget=25)
    assert entries(allocation) == {"blocks.0.matrix": list(range(5)), "blocks.1.matrix": list(range(20))}
    with pytest.raises(BudgetError, match=r"`budget` 26 exceeds what the linear layers can use \(25\)"):
        layerwise_allocation(sensitivity, budget=26)


def test_a_budget_of_the_token_alone_chooses_nothing(make_outline: Make, make_scores: Scores) -> None:
    allocation = layerwise_allocation(make_scores(make_outline([(4, 5), (3,)], token=3)), budget=3)
    assert (allocation.sparse, allocation.trainable_params, allocation.rule) == ({}, 3, "layerwise")
    assert allocation.metadata == {"criterion": "magnitude"}
