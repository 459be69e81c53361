"""Whole modules on random matrices, and a rest of random entries."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sensitune.allocation import random_structured_allocation
from sensitune.errors import ArgumentError, BudgetError
from sensitune.sites import ModelOutline

Make = Callable[..., ModelOutline]


@pytest.mark.parametrize("structured", ["lora", "adapter"])
@pytest.mark.parametrize("budget", [125, 333, 620])
def test_random_structured_placement_is_whole_modules_and_a_rest_of_entries(
    outline: ModelOutline, structured: str, budget: int
) -> None:
    allocation = random_structured_allocation(outline, budget=budget, structured=structured, rank=2)  # type: ignore[arg-type]
    size = {"lora": 2 * 50, "adapter": 2 * 2 * 20 + 2 + 20}[structured]
    modules = min((budget - 20) // size, 6)
    assert (len(allocation.structured), allocation.trainable_params) == (modules, budget)
    assert allocation.sparse_params == budget - 20 - modules * size
    assert not set(allocation.sparse) & set(allocation.structured)
    assert allocation.rule == "random structured"


def test_random_entries_fall_on_every_scalar_alike(make_outline: Make) -> None:
    outline = make_outline([(1, 1), (2, 3), (4,), (2, 2, 1)])
    counts = dict.fromkeys(("blocks.1.matrix", "blocks.2.vector", "blocks.3.tensor"), 0)
    for seed in range(300):
        allocation = random_structured_allocation(outline, budget=4, rank=1, seed=seed)
        assert allocation.structured == {"blocks.0.matrix": 1}  # costs 2; the other one 5
        for name, indices in allocation.sparse.items():
            counts[name] += indices.numel()
    assert [round(count / 600, 1) for count in counts.values()] == [0.4, 0.3, 0.3]


def test_random_structured_placement_depends_on_its_seed_alone(outline: ModelOutline) -> None:
    first, again, other = (random_structured_allocation(outline, budget=333, rank=2, seed=seed) for seed in (1, 1, 2))
    assert first.table() == again.table() != other.table()
    assert first.metadata == {"criterion": "random", "seed": 1}


def test_modules_that_do_not_fit_are_passed_over(make_outline: Make) -> None:
    outline = make_outline([(30, 30), (3, 3), (30, 30), (9,)])
    for seed in range(5):
        allocation = random_structured_allocation(outline, budget=10, rank=1, seed=seed)
        assert (allocation.structured, allocation.sparse_params) == ({"blocks.1.matrix": 1}, 4)


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        (119, r"`budget` 119 pays for no lora of rank 2. Raise it or lower `rank`."),
        (641, r"`budget` 641 exceeds what rank 2 can use \(640\). Raise `rank` or lower `budget`."),
        (19, r"`budget` must be at least 20 parameters \(the class token is always trained\). Got 19."),
    ],
)
def test_random_structured_placement_refuses_a_budget_it_cannot_spend(
    outline: ModelOutline, budget: int, sentence: str
) -> None:
    with pytest.raises(BudgetError, match=sentence):
        random_structured_allocation(outline, budget=budget, rank=2)


def test_random_structured_placement_checks_its_module(outline: ModelOutline) -> None:
    with pytest.raises(ArgumentError, match="`structured` must be 'lora', 'adapter' or None"):
        random_structured_allocation(outline, budget=333, structured="prompt")  # type: ignore[arg-type]
