"""The rule of the paper on random scores."""

from __future__ import annotations

import pytest

from sensitune.allocation import random_allocation
from sensitune.errors import BudgetError
from sensitune.sites import ModelOutline


@pytest.mark.parametrize("structured", ["lora", "adapter", None])
def test_a_random_allocation_costs_its_budget(outline: ModelOutline, structured: str | None) -> None:
    allocation = random_allocation(outline, budget=333, structured=structured, rank=2)  # type: ignore[arg-type]
    assert (allocation.trainable_params, allocation.rule) == (333, "random")
    assert allocation.metadata == {"criterion": "random", "seed": 0}


def test_a_random_allocation_depends_on_its_seed_alone(outline: ModelOutline) -> None:
    first, again, other = (random_allocation(outline, budget=100, structured=None, seed=seed) for seed in (1, 1, 2))
    entries = [{name: x.tolist() for name, x in one.sparse.items()} for one in (first, again, other)]
    assert entries[0] == entries[1] != entries[2]


def test_a_random_allocation_refuses_a_budget_it_cannot_spend(outline: ModelOutline) -> None:
    with pytest.raises(BudgetError, match="exceeds what rank 1 can use"):
        random_allocation(outline, budget=1000, rank=1)


def test_without_modules_and_whole_vectors_a_random_allocation_is_purely_sparse(outline: ModelOutline) -> None:
    allocation = random_allocation(outline, budget=3000, structured=None, whole_vectors=False)
    assert (allocation.structured, allocation.vectors, allocation.sparse_params) == ({}, (), 3000 - 20)
