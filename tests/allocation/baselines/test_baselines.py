"""The baselines need no scores and cost what they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from made_sites import make_site

from sensitune.allocation import random_allocation, random_structured_allocation, uniform_allocation
from sensitune.errors import ArgumentError, BudgetError
from sensitune.sites import ModelOutline

Make = Callable[..., ModelOutline]


@pytest.fixture
def outline() -> ModelOutline:
    sites = [
        make_site(f"blocks.{block}.{operation}", (20, 30), block=block)
        for block in range(3)
        for operation in ("q", "v")
    ]
    norm = make_site("norm.weight", (20,), operation="norm")
    return ModelOutline((*sites, norm), ("head",), 50, {"cls_token": (1, 1, 20)}, {}, 4000)


def test_uniform_puts_one_module_on_every_matrix(outline: ModelOutline) -> None:
    allocation = uniform_allocation(outline, rank=2)
    assert set(allocation.structured.values()) == {2}
    assert len(allocation.structured) == 6
    assert allocation.trainable_params == 6 * 2 * 50 + 20
    assert (allocation.rule, allocation.tau, allocation.budget, allocation.alpha) == ("uniform", None, None, None)


def test_uniform_can_be_limited_to_some_operations(outline: ModelOutline) -> None:
    allocation = uniform_allocation(outline, structured="adapter", rank=2, operations=("v",))
    assert list(allocation.structured) == ["blocks.0.v", "blocks.1.v", "blocks.2.v"]


def test_vectors_only_tunes_every_vector_whole(outline: ModelOutline) -> None:
    allocation = uniform_allocation(outline, structured=None, vectors=True)
    assert (allocation.structured, allocation.vectors) == ({}, ("norm.weight",))
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
