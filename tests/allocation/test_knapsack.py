"""`knapsack_allocation` spends exactly, captures what it says, and nearly as much as the best choice there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sites import make_site

from sensitune.allocation import Allocation, knapsack_allocation
from sensitune.allocation._offers import Curve, Offer
from sensitune.allocation._spending import settle, total_cost
from sensitune.errors import ArgumentError, BudgetError, NonFiniteError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline

Make = Callable[..., ModelOutline]
SHAPES = st.one_of(
    st.tuples(st.integers(1, 6)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)),
)


def with_gradients(outline: ModelOutline, gradients: dict[str, torch.Tensor], **metadata: Any) -> Sensitivity:
    scores = {name: gradient.square() for name, gradient in gradients.items()}
    return Sensitivity(scores, outline, metadata, gradients=gradients)


def random_gradients(outline: ModelOutline, seed: int, rank: int = 9, noise: float = 1.0) -> Sensitivity:
    """Matrices of low rank and noise; noise elsewhere."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    gradients = {}
    for site in outline.sites:
        gradients[site.id] = noise * draw(*site.shape)
        if site.kind == "matrix":
            gradients[site.id] += draw(site.shape[0], rank) @ draw(rank, site.shape[1])
    return with_gradients(outline, gradients)


def captured(allocation: Allocation, sensitivity: Sensitivity) -> float:
    """Squared Frobenius norm, from the definition: projections on singular vectors, and entries."""
    total = 0.0
    for site in sensitivity.sites:
        gradient = sensitivity.gradient_of(site).double()
        if site.id in allocation.structured:
            matrix = gradient.t() if site.transposed else gradient.flatten(1)
            directions = torch.linalg.svd(matrix).Vh[: allocation.structured[site.id]]
            total += float((matrix @ directions.t()).square().sum())
        elif site.id in allocation.vectors:
            total += float(gradient.square().sum())
        elif site.id in allocation.sparse:
            total += float(gradient.flatten()[allocation.sparse[site.id]].square().sum())
    return total


def best_gains(sensitivity: Sensitivity, params: int, max_rank: int | None) -> np.ndarray:
    """The highest gain at every cost up to `params`, exactly: every way of every site against every cost."""
    best = np.zeros(params + 1)
    for site in sensitivity.sites:
        gradient = sensitivity.gradient_of(site).double()
        falling = gradient.flatten().square().sort(descending=True).values
        ways = [(count + 1, float(falling[: count + 1].sum())) for count in range(falling.numel())]
        if site.kind == "matrix":
            energies = torch.linalg.svdvals(gradient).square()
            step = sum(site.shape)
            ways += [
                (step * (rank + 1), float(energies[: rank + 1].sum()))
                for rank in range(min(len(energies), max_rank or 99))
            ]
        before = best.copy()
        for cost, gain in ways:
            if cost <= params:
                best[cost:] = np.maximum(best[cost:], before[: params + 1 - cost] + gain)
    return best


@st.composite
def problems(draw: st.DrawFn, make: Make) -> Sensitivity:
    outline = make(draw(st.lists(SHAPES, min_size=1, max_size=5)), token=draw(st.sampled_from([0, 3])))
    if draw(st.booleans()):
        rank, noise = draw(st.integers(1, 3)), draw(st.sampled_from([0.01, 1.0]))
        return random_gradients(outline, draw(st.integers(0, 99)), rank, noise)
    level = draw(st.sampled_from([1, 3]))  # ties and zeros
    numbers = [draw(st.lists(st.integers(-level, level), min_size=s.numel, max_size=s.numel)) for s in outline.sites]
    return with_gradients(
        outline,
        {
            s.id: torch.tensor(x, dtype=torch.float64).reshape(s.shape)
            for s, x in zip(outline.sites, numbers, strict=True)
        },
    )


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_the_budget_is_spent_exactly_within_the_bound_or_refused(make_outline: Make, data: st.DataObject) -> None:
    sensitivity = data.draw(problems(make_outline))
    always = sensitivity.outline.always_trained_params
    scalars = sum(site.numel for site in sensitivity.sites)
    budget = always + data.draw(st.integers(0 if always else 1, scalars))
    max_rank = data.draw(st.sampled_from([None, 1, 2]))
    best = float(best_gains(sensitivity, budget - always, max_rank)[-1])
    usable = sum(int(sensitivity.gradient_of(site).count_nonzero()) for site in sensitivity.sites)
    if budget - always > usable:
        with pytest.raises(BudgetError, match=f"`budget` {budget} exceeds the {always + usable} scalars that have"):
            knapsack_allocation(sensitivity, budget=budget, max_rank=max_rank)
        return
    allocation = knapsack_allocation(sensitivity, budget=budget, max_rank=max_rank)
    metadata = allocation.metadata
    assert allocation.trainable_params == allocation.budget == budget
    assert metadata["gain"] == pytest.approx(captured(allocation, sensitivity), abs=1e-9)
    assert metadata["gain"] <= best + 1e-9
    assert best <= metadata["gain_bound"] + 1e-9
    assert metadata["gain_bound"] <= metadata["energy"] + 1e-9
    assert all(rank <= (max_rank or 99) for rank in allocation.structured.values())


def test_almost_all_of_the_best_gain_is_reached(make_outline: Make) -> None:
    outline = make_outline([(12, 8), (8, 12), (10, 10), (12,), (8,), (2, 3, 4)], token=4)
    shares = []
    for seed in range(8):
        sensitivity = random_gradients(outline, seed, rank=3, noise=0.5)
        best = best_gains(sensitivity, 200, None)
        for budget in range(24, 204, 9):
            allocation = knapsack_allocation(sensitivity, budget=budget)
            shares.append(allocation.metadata["gain"] / best[budget - 4])
    assert min(shares) > 0.9
    assert sum(shares) / len(shares) > 0.99


def test_a_matrix_of_low_rank_gets_that_rank_and_scattered_entries_stay_single(make_outline: Make) -> None:
    outline = make_outline([(20, 30), (20, 30), (5,)])
    torch.manual_seed(0)
    low_rank, scattered = torch.randn(20, 3) @ torch.randn(3, 30), torch.zeros(20, 30)
    scattered.view(-1)[torch.randperm(600)[:40]] = 10.0
    gradients = {"blocks.0.matrix": low_rank, "blocks.1.matrix": scattered, "blocks.2.vector": torch.full((5,), 9.0)}
    allocation = knapsack_allocation(with_gradients(outline, gradients), budget=3 * 50 + 40 + 5)
    assert allocation.structured == {"blocks.0.matrix": 3}
    assert allocation.vectors == ("blocks.2.vector",)
    assert torch.equal(allocation.sparse["blocks.1.matrix"], scattered.flatten().nonzero().flatten())
    assert allocation.metadata["gain"] == pytest.approx(allocation.metadata["energy"], rel=1e-5)


def test_a_lower_limit_on_the_rank_leaves_more_to_the_others(make_outline: Make) -> None:
    torch.manual_seed(0)
    strong, weak = torch.randn(40, 2) @ torch.randn(2, 60), 0.3 * torch.randn(40, 1) @ torch.randn(1, 60)
    gradients = {"blocks.0.matrix": strong, "blocks.1.matrix": weak, "blocks.2.vector": torch.full((9,), 0.1)}
    sensitivity = with_gradients(make_outline([(40, 60), (40, 60), (9,)]), gradients)
    free, limited = (knapsack_allocation(sensitivity, budget=203, max_rank=rank) for rank in (None, 1))
    assert free.structured == {"blocks.0.matrix": 2}
    assert limited.structured == {"blocks.0.matrix": 1, "blocks.1.matrix": 1}
    assert limited.metadata["gain"] < free.metadata["gain"]


def test_without_modules_the_largest_gradients_are_taken(make_outline: Make) -> None:
    outline = make_outline([(4, 5), (6,), (2, 2, 2)])
    sensitivity = random_gradients(outline, seed=1)
    allocation = knapsack_allocation(sensitivity, budget=10, structured=None)
    flat = torch.cat([sensitivity.gradient_of(site).flatten().abs() for site in outline.sites])
    starts = dict(zip([site.id for site in outline.sites], [0, 20, 26], strict=True))
    found = torch.cat([starts[name] + indices for name, indices in allocation.sparse.items()])
    assert torch.equal(found.sort().values, flat.topk(10).indices.sort().values)
    assert (allocation.structured, allocation.structured_type) == ({}, None)


def test_equal_entries_go_by_site_order_then_by_lower_index(make_outline: Make) -> None:
    outline = make_outline([(3, 4), (6,)])
    sensitivity = with_gradients(outline, {"blocks.0.matrix": torch.ones(3, 4), "blocks.1.vector": -torch.ones(6)})
    allocation = knapsack_allocation(sensitivity, budget=14, structured=None)
    assert {name: indices.tolist() for name, indices in allocation.sparse.items()} == {
        "blocks.0.matrix": list(range(12)),
        "blocks.1.vector": [0, 1],
    }


def test_a_matrix_is_read_as_out_by_in_however_it_is_stored() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(20, 2) @ torch.randn(2, 30)
    shapes = {"linear": (20, 30), "conv1d": (30, 20), "pointwise": (20, 30, 1, 1)}
    stored = {"linear": gradient, "conv1d": gradient.t().contiguous(), "pointwise": gradient[..., None, None]}
    sites = tuple(make_site(name, shape, transposed=name == "conv1d") for name, shape in shapes.items())
    outline = ModelOutline(sites, ("head",), 0, {}, {}, 1800)
    allocation = knapsack_allocation(with_gradients(outline, stored), budget=3 * 2 * 50)
    assert allocation.structured == dict.fromkeys(shapes, 2)


def test_a_list_of_budgets_gives_what_each_gives_alone(make_outline: Make) -> None:
    sensitivity = random_gradients(make_outline([(12, 8), (8, 12), (12,)], token=4), seed=3, rank=2, noise=0.3)
    budgets = [60, "30", 4]
    for one, budget in zip(knapsack_allocation(sensitivity, budget=budgets), budgets, strict=True):
        alone = knapsack_allocation(sensitivity, budget=budget)
        assert one.table() == alone.table()
        assert one.metadata["gain"] == pytest.approx(alone.metadata["gain"])


def test_the_allocation_says_how_it_was_made(make_outline: Make) -> None:
    sensitivity = random_gradients(make_outline([(12, 8), (12,)]), seed=3)
    origin = Sensitivity(sensitivity.scores, sensitivity.outline, {"num_batches": 16}, gradients=sensitivity.gradients)
    allocation = knapsack_allocation(origin, budget=50)
    assert (allocation.rule, allocation.tau, allocation.alpha) == ("knapsack", None, None)
    assert allocation.metadata.keys() == {"num_batches", "criterion", "gain", "gain_bound", "energy"}
    assert allocation.metadata["criterion"] == "accumulated_gradient"


def test_scores_alone_are_not_enough(make_outline: Make) -> None:
    outline = make_outline([(3, 4)])
    with pytest.raises(ArgumentError, match="keep_gradients=True"):
        knapsack_allocation(Sensitivity({"blocks.0.matrix": torch.ones(3, 4)}, outline, {}), budget=5)


def test_a_gradient_that_is_not_finite_is_refused(make_outline: Make) -> None:
    sensitivity = with_gradients(make_outline([(2,)]), {"blocks.0.vector": torch.tensor([1.0, float("nan")])})
    with pytest.raises(NonFiniteError, match=r"A gradient of `blocks.0.vector` is not a finite number"):
        knapsack_allocation(sensitivity, budget=1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"structured": "adapter"}, "`structured` must be 'lora' or None: what an Adapter captures"),
        ({"max_rank": 0}, r"`max_rank` must be at least 1, or None for no limit. Got 0."),
        ({"budget": 3}, r"`budget` must be at least 4 parameters \(the class token is always trained\). Got 3."),
        ({"budget": []}, "`budget` must hold at least one budget"),
        ({"budget": "few"}, "`budget` must be a whole number, or text such as"),
    ],
)
def test_an_impossible_option_is_refused(make_outline: Make, options: dict[str, Any], sentence: str) -> None:
    sensitivity = random_gradients(make_outline([(3, 4)], token=4), seed=0)
    with pytest.raises(ArgumentError, match=sentence):
        knapsack_allocation(sensitivity, **({"budget": 9} | options))


def test_a_module_dearer_than_the_budget_is_not_bought_where_its_rate_is_rounded_down() -> None:
    gain, step = 0.057, 7
    assert gain / step * step < gain
    offer = Offer(Curve.build(1, np.empty(0)), Curve.build(step, np.array([gain])), gain)
    choices, _ = settle([offer], 3)
    assert total_cost(choices) == 0
