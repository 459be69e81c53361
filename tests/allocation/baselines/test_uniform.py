"""The same module everywhere, or on some operations, or nothing but vectors or the head."""

from __future__ import annotations

import pytest

from sensitune.allocation import uniform_allocation
from sensitune.errors import ArgumentError
from sensitune.sites import ModelOutline


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
