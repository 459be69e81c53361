"""The best inputs of every output neuron."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sites import make_site

from sensitune.allocation import Allocation, neuron_allocation
from sensitune.errors import BudgetError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline

Make = Callable[..., ModelOutline]
Scores = Callable[..., Sensitivity]
MATRICES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5)


def entries(allocation: Allocation) -> dict[str, list[int]]:
    return {name: indices.tolist() for name, indices in allocation.sparse.items()}


@given(shapes=MATRICES, seed=st.integers(0, 9), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_neuron_has_its_best_inputs_and_the_rest_goes_to_the_next_best(
    make_outline: Make, make_scores: Scores, shapes: list[tuple[int, int]], seed: int, data: st.DataObject
) -> None:
    sensitivity = make_scores(make_outline([*shapes, (5,)], token=3), seed)
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


def test_a_budget_below_one_input_per_neuron_is_refused(make_outline: Make, make_scores: Scores) -> None:
    sensitivity = make_scores(make_outline([(3, 5), (4, 5), (6,)], token=3))
    assert neuron_allocation(sensitivity, budget=10).metadata["inputs_per_neuron"] == 1
    with pytest.raises(
        BudgetError,
        match=r"one input of each of the 7 output neurons: 10 parameters with those always trained. Got 9.",
    ):
        neuron_allocation(sensitivity, budget=9)


def test_a_budget_beyond_the_linear_layers_is_refused(make_outline: Make, make_scores: Scores) -> None:
    with pytest.raises(BudgetError, match=r"`budget` 39 exceeds what the linear layers can use \(38\)"):
        neuron_allocation(make_scores(make_outline([(3, 5), (4, 5), (6,)], token=3)), budget=39)
