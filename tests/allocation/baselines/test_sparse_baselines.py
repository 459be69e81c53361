"""The rules of others that choose single entries: the same share of every layer, the best inputs of every neuron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sites import make_site, make_slices
from peft import SupertuningConfig, get_peft_model
from torch import nn

from sensitune.allocation import Allocation, layerwise_allocation, neuron_allocation
from sensitune.errors import ArgumentError, BudgetError, NonFiniteError
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.sites import ModelOutline

Make = Callable[..., ModelOutline]
Allocate = Callable[..., Allocation]
MATRICES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5)


def random_scores(outline: ModelOutline, seed: int = 0) -> Sensitivity:
    generator = torch.Generator().manual_seed(seed)
    scores = {site.id: 1 - torch.rand(site.shape, generator=generator) for site in outline.sites}
    return Sensitivity(scores, outline, {"criterion": "magnitude", "losses": []})


def entries(allocation: Allocation) -> dict[str, list[int]]:
    return {name: indices.tolist() for name, indices in allocation.sparse.items()}


# -- the same share of every layer ------------------------------------------------------------------------------------


@given(shapes=MATRICES, seed=st.integers(0, 9), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_layer_gives_its_highest_scores_and_the_same_share(
    make_outline: Make, shapes: list[tuple[int, int]], seed: int, data: st.DataObject
) -> None:
    sensitivity = random_scores(make_outline([*shapes, (5,)], token=3), seed)
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
    config = SupertuningConfig(target_modules=["0", "1", "2"], sparsity=0.75)
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


def test_a_score_of_zero_is_never_chosen(make_outline: Make) -> None:
    sensitivity = random_scores(make_outline([(4, 5), (4, 5)]))
    sensitivity.scores["blocks.0.matrix"][1:] = 0
    allocation = layerwise_allocation(sensitivity, budget=25)
    assert entries(allocation) == {"blocks.0.matrix": list(range(5)), "blocks.1.matrix": list(range(20))}
    with pytest.raises(BudgetError, match=r"`budget` 26 exceeds what the linear layers can use \(25\)"):
        layerwise_allocation(sensitivity, budget=26)


def test_a_budget_of_the_token_alone_chooses_nothing(make_outline: Make) -> None:
    allocation = layerwise_allocation(random_scores(make_outline([(4, 5), (3,)], token=3)), budget=3)
    assert (allocation.sparse, allocation.trainable_params, allocation.rule) == ({}, 3, "layerwise")
    assert allocation.metadata == {"criterion": "magnitude"}


# -- the best inputs of every neuron ----------------------------------------------------------------------------------


@given(shapes=MATRICES, seed=st.integers(0, 9), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_neuron_has_its_best_inputs_and_the_rest_goes_to_the_next_best(
    make_outline: Make, shapes: list[tuple[int, int]], seed: int, data: st.DataObject
) -> None:
    sensitivity = random_scores(make_outline([*shapes, (5,)], token=3), seed)
    neurons, total = sum(rows for rows, _ in shapes), sum(rows * columns for rows, columns in shapes)
    count = data.draw(st.integers(neurons, total))
    allocation = neuron_allocation(sensitivity, budget=3 + count)
    assert allocation.trainable_params == allocation.budget == 3 + count
    inputs = allocation.metadata["inputs_per_neuron"]
    chosen_next, refused_next = [], [0.0]
    for site in sensitivity.sites[:-1]:
        scores, width = sensitivity.score_of(site), site.in_features
        mask = torch.zeros(site.numel, dtype=torch.bool)
        mask[allocation.sparse[site.id]] = True
        for row, chosen in zip(scores, mask.view(site.shape), strict=True):
            falling = row.sort(descending=True).values.tolist()
            number = int(chosen.sum())
            assert number in {min(inputs, width), min(inputs + 1, width)}
            assert sorted(row[chosen].tolist(), reverse=True) == falling[:number]
            if inputs < width:
                (chosen_next if number > inputs else refused_next).append(falling[inputs])
    assert len(refused_next) > 1 or count == total  # else one input more would fit for all
    assert min(chosen_next, default=2.0) >= max(refused_next)


def test_neurons_of_a_transposed_weight_are_its_columns() -> None:
    torch.manual_seed(0)
    scores = torch.rand(4, 6)
    found = {}
    for name, stored, transposed in (("plain", scores, False), ("conv1d", scores.t().contiguous(), True)):
        site = make_site("x", tuple(stored.shape), transposed=transposed)
        sensitivity = Sensitivity({"x": stored}, ModelOutline((site,), (), 0, {}, {}, 24), {})
        mask = torch.zeros(24, dtype=torch.bool)
        mask[neuron_allocation(sensitivity, budget=10).sparse["x"]] = True
        found[name] = mask.view(site.shape)
    assert torch.equal(found["plain"], found["conv1d"].t())
    assert sorted(found["plain"].sum(1).tolist()) == [2, 2, 3, 3]


def test_of_equal_inputs_the_first_are_taken_even_at_a_score_of_zero(make_outline: Make) -> None:
    outline = make_outline([(2, 5), (3, 4)])
    scores = {"blocks.0.matrix": torch.zeros(2, 5), "blocks.1.matrix": torch.ones(3, 4)}
    allocation = neuron_allocation(Sensitivity(scores, outline, {}), budget=12)
    assert entries(allocation) == {"blocks.0.matrix": [0, 1, 5, 6], "blocks.1.matrix": [0, 1, 2, 4, 5, 6, 8, 9]}


def test_a_budget_below_one_input_per_neuron_is_refused(make_outline: Make) -> None:
    sensitivity = random_scores(make_outline([(3, 5), (4, 5), (6,)], token=3))
    assert neuron_allocation(sensitivity, budget=10).metadata["inputs_per_neuron"] == 1
    with pytest.raises(
        BudgetError,
        match=r"one input of each of the 7 output neurons: 10 parameters with those always trained. Got 9.",
    ):
        neuron_allocation(sensitivity, budget=9)


def test_a_budget_beyond_the_linear_layers_is_refused(make_outline: Make) -> None:
    with pytest.raises(BudgetError, match=r"`budget` 39 exceeds what the linear layers can use \(38\)"):
        neuron_allocation(random_scores(make_outline([(3, 5), (4, 5), (6,)], token=3)), budget=39)


# -- what both refuse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [layerwise_allocation, neuron_allocation])
@pytest.mark.parametrize(
    ("score", "error", "sentence"),
    [
        (-1.0, ArgumentError, r"Scores must not be negative. Got -1.0 in `blocks.0.matrix`"),
        (float("nan"), NonFiniteError, r"A score of `blocks.0.matrix` is not a finite number"),
    ],
)
def test_impossible_scores_are_refused(
    make_outline: Make, rule: Allocate, score: float, error: type[Exception], sentence: str
) -> None:
    sensitivity = random_scores(make_outline([(3, 5)]))
    sensitivity.scores["blocks.0.matrix"][1, 2] = score
    with pytest.raises(error, match=sentence):
        rule(sensitivity, budget=5)


@pytest.mark.parametrize("rule", [layerwise_allocation, neuron_allocation])
@pytest.mark.parametrize("budget", [2, "few"])
def test_impossible_budgets_are_refused(make_outline: Make, rule: Allocate, budget: Any) -> None:
    with pytest.raises(BudgetError, match="`budget` must be"):
        rule(random_scores(make_outline([(3, 5)], token=3)), budget=budget)
