"""The baselines need no scores and cost what they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sensitune.allocation import random_allocation, uniform_allocation
from sensitune.errors import ArgumentError, BudgetError
from sensitune.sites import ModelOutline, Site

Make = Callable[..., ModelOutline]


@pytest.fixture
def outline() -> ModelOutline:
    sites = [
        Site(f"blocks.{block}.{operation}", f"blocks.{block}.{operation}", None, "matrix", block, operation, (20, 30))
        for block in range(3)
        for operation in ("q", "v")
    ]
    norm = Site("norm.weight", "norm.weight", None, "vector", None, "norm", (20,))
    return ModelOutline((*sites, norm), ("head",), 50, {"cls_token": (1, 1, 20)}, {}, 4000)


def test_uniform_puts_one_module_on_every_matrix(outline: ModelOutline) -> None:
    allocation = uniform_allocation(outline, rank=2)
    assert len(allocation.structured) == 6
    assert allocation.trainable_params == 6 * 2 * 50 + 20
    assert (allocation.method, allocation.tau, allocation.budget, allocation.alpha) == ("uniform", None, None, None)


def test_uniform_can_be_limited_to_some_operations(outline: ModelOutline) -> None:
    allocation = uniform_allocation(outline, structured="adapter", rank=2, operations=("v",))
    assert allocation.structured == ("blocks.0.v", "blocks.1.v", "blocks.2.v")


def test_vectors_only_tunes_every_vector_whole(outline: ModelOutline) -> None:
    allocation = uniform_allocation(outline, structured=None, vectors=True)
    assert (allocation.structured, allocation.vectors) == ((), ("norm.weight",))
    assert allocation.trainable_params == 20 + 20


def test_head_only_trains_no_parameter_of_the_backbone(outline: ModelOutline) -> None:
    allocation = uniform_allocation(outline, structured=None, train_tokens=False)
    assert (allocation.trainable_params, allocation.always_trained) == (0, ())
    assert "0 without the head" in allocation.summary()


def test_an_unknown_operation_is_refused_with_those_there_are(outline: ModelOutline) -> None:
    with pytest.raises(ArgumentError, match=r"`operations` has 'key', which no matrix does. Choose from q, v."):
        uniform_allocation(outline, operations=("q", "key"))


def test_operations_without_modules_are_refused(outline: ModelOutline) -> None:
    with pytest.raises(ArgumentError, match="`operations` chooses where modules go, so it needs `structured`"):
        uniform_allocation(outline, structured=None, operations=("q",))


def test_a_uniform_allocation_checks_its_module(outline: ModelOutline) -> None:
    with pytest.raises(ArgumentError, match=r"`rank` must be at least 1. Got 0."):
        uniform_allocation(outline, rank=0)


@pytest.mark.parametrize("structured", ["lora", "adapter", None])
def test_a_random_allocation_costs_its_budget(outline: ModelOutline, structured: str | None) -> None:
    allocation = random_allocation(outline, budget=333, structured=structured, rank=2)  # type: ignore[arg-type]
    assert (allocation.trainable_params, allocation.method) == (333, "random")
    assert allocation.metadata == {"criterion": "random", "seed": 0}


def test_a_random_allocation_depends_on_its_seed_alone(outline: ModelOutline) -> None:
    first, again, other = (random_allocation(outline, budget=100, structured=None, seed=seed) for seed in (1, 1, 2))
    entries = [{name: x.tolist() for name, x in one.sparse.items()} for one in (first, again, other)]
    assert entries[0] == entries[1] != entries[2]


def test_a_random_allocation_refuses_a_budget_it_cannot_spend(outline: ModelOutline) -> None:
    with pytest.raises(BudgetError, match="exceeds what rank 1 can use"):
        random_allocation(outline, budget=1000, rank=1)
