"""Ranks of plain LoRAs against a walk over every single scalar."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_models import random_sensitivity
from torch import nn
from tuned_models import tiny_vit

from sensitune.allocation import lora_allocation
from sensitune.errors import ArgumentError, BudgetError, ModelError, NonFiniteError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import outline_model

VIT = random_sensitivity(tiny_vit())
MATRICES = ("qkv", "proj", "fc1", "fc2")


def slow_ranks(sensitivity: Sensitivity, budget: int, alpha: float, *, rank: int, most: int) -> dict[str, int]:
    """Walk down all scalars of all whole matrices, one after the other; buy what each makes affordable."""
    shapes = {name: tuple(scores.shape) for name, scores in sensitivity.scores.items() if scores.dim() == 2}
    scalars = [
        (-float(score), number, index, name)
        for number, name in enumerate(shapes)
        for index, score in enumerate(sensitivity.scores[name].flatten())
    ]
    selected, ranks, refused = Counter(), Counter(), set()
    for _, _, _, name in sorted(scalars):
        selected[name] += 1
        step = rank * sum(shapes[name])
        limit = most if most == 1 else min(most, *shapes[name])
        while name not in refused and ranks[name] < limit and selected[name] * alpha >= (ranks[name] + 1) * step:
            if step > budget:
                refused.add(name)
            else:
                ranks[name] += 1
                budget -= step
    return {name: rank * count for name, count in ranks.items() if count}


@settings(max_examples=25, deadline=None)
@given(
    budget=st.integers(48, 1200),
    alpha=st.sampled_from([1.0, 2.5, 10.0]),
    max_rank=st.integers(2, 20),
    seed=st.integers(0, 3),
)
def test_ranks_are_those_of_a_walk_over_every_scalar(budget: int, alpha: float, max_rank: int, seed: int) -> None:
    sensitivity = random_sensitivity(tiny_vit(depth=1), seed=seed)
    budget = min(budget, 192 * max_rank)  # what the four matrices of a block can use
    allocation = lora_allocation(sensitivity, budget=budget, max_rank=max_rank, alpha=alpha)
    assert allocation.structured == slow_ranks(sensitivity, budget, alpha, rank=1, most=max_rank)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_whole_modules_at_one_rank_are_those_of_a_walk_over_every_scalar(rank: int) -> None:
    for budget in (150 * rank, 300 * rank, 570 * rank):
        allocation = lora_allocation(VIT, budget=budget, rank=rank)
        assert allocation.structured == slow_ranks(VIT, budget, 10.0, rank=rank, most=1)
        assert set(allocation.structured.values()) == {rank}


@pytest.mark.parametrize("tau", [30, 100, 300, 800])
def test_modules_at_one_rank_are_those_that_the_published_rule_chooses(tau: int) -> None:
    matrices = {name: scores for name, scores in VIT.scores.items() if scores.dim() == 2}
    cut = torch.cat([scores.flatten() for scores in matrices.values()]).topk(tau).values[-1]
    sizes = {name: 2 * sum(scores.shape) for name, scores in matrices.items()}
    published = {name for name, scores in matrices.items() if int((scores >= cut).sum()) >= sizes[name] / 10}
    assert published
    budget = sum(sizes[name] for name in published)
    assert lora_allocation(VIT, budget=budget, rank=2).structured == dict.fromkeys(published, 2)


@settings(max_examples=25, deadline=None)
@given(budget=st.integers(24, 2000), max_rank=st.integers(1, 12), seed=st.integers(0, 3))
def test_the_budget_is_met_to_within_one_rank_of_a_module_that_could_take_it(
    budget: int, max_rank: int, seed: int
) -> None:
    sensitivity = random_sensitivity(tiny_vit(), seed=seed)
    budget = min(budget, 3 * 192 * max_rank)  # what the matrices of three blocks can use
    allocation = lora_allocation(sensitivity, budget=budget, max_rank=max_rank)
    left = budget - allocation.trainable_params
    steps = [
        site.in_features + site.out_features
        for site in allocation.outline.sites
        if allocation.structured.get(site.id, 0) < min(max_rank, *site.shape)
    ]
    assert 0 <= left < min(steps, default=1)


def test_a_fused_matrix_is_one_however_it_was_scored() -> None:
    apart = random_sensitivity(tiny_vit())
    as_stored = replace(apart, outline=outline_model(tiny_vit(), split_fused=False))
    first, second = (lora_allocation(one, budget=900) for one in (apart, as_stored))
    assert first.structured == second.structured
    assert first.outline.sites == second.outline.sites
    assert "blocks.0.attn.qkv.weight" in {site.id for site in first.outline.sites}


def test_a_fused_matrix_of_which_a_part_is_left_out_is_left_out() -> None:
    outline = outline_model(tiny_vit(), exclude=["blocks.0.attn.qkv.weight[[]q[]]"])
    allocation = lora_allocation(replace(VIT, outline=outline), budget=900)
    sites = {site.id for site in allocation.outline.sites}
    assert "blocks.0.attn.qkv.weight" not in sites
    assert "blocks.1.attn.qkv.weight" in sites


def test_nothing_but_matrices_is_trained() -> None:
    allocation = lora_allocation(VIT, budget=900)
    assert allocation.rule == "lora"
    assert {site.kind for site in allocation.outline.sites} == {"matrix"}
    assert (allocation.vectors, dict(allocation.sparse), allocation.always_trained) == ((), {}, ())
    assert allocation.outline.frozen["cls_token"] == "not a matrix, so no LoRA stands for its change"


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (["qkv"], {"qkv"}),
        (["fc1", "proj"], {"fc1", "proj"}),
        (["blocks.?.mlp.*"], {"fc1", "fc2"}),
        (["blocks.0.attn.proj", "blocks.1.attn.proj"], {"proj"}),
    ],
)
def test_only_what_is_allowed_is_chosen(allowed: list[str], expected: set[str]) -> None:
    allocation = lora_allocation(VIT, budget=100, allowed=allowed)
    assert {site.module.rpartition(".")[2] for site in allocation.outline.sites} == expected
    assert allocation.structured


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    for options, error, message in [
        ({"budget": 23}, BudgetError, "the cheapest, on `blocks.0.attn.proj`, takes 24 parameters. Got 23."),
        ({"budget": 47, "rank": 2}, BudgetError, "must pay for one LoRA of rank 2; the cheapest"),
        ({"budget": 10_000, "max_rank": 2}, BudgetError, "exceeds what LoRAs of rank 2 at most can use (1,152). Raise"),
        ({"budget": 10_000, "rank": 2}, BudgetError, "exceeds what LoRAs of rank 2 can use (1,152). Raise `rank`"),
        ({"budget": 100, "rank": 2, "max_rank": 2}, ArgumentError, "Give `rank` or `max_rank`, not both. Got 2 and 2."),
        ({"budget": 100, "max_rank": 0}, ArgumentError, "`max_rank` must be at least 1. Got 0."),
        ({"budget": 100, "rank": 0}, ArgumentError, "`rank` must be at least 1. Got 0."),
        ({"budget": 100, "alpha": 0.5}, ArgumentError, "`alpha` must be a number of at least 1"),
        ({"budget": 100, "allowed": ["q_proj"]}, ArgumentError, "names 'q_proj', which is no matrix of the model. It"),
        ({"budget": 100, "allowed": "qkv"}, ArgumentError, "`allowed` must be a list of names"),
    ]:
        with pytest.raises(error) as caught:
            lora_allocation(VIT, **options)
        assert message in str(caught.value)


def test_a_model_without_linear_layers_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ModelError, match="has no linear layer that can be ranked, and a LoRA needs one"):
        lora_allocation(random_sensitivity(model), budget=100)


def test_a_score_that_is_not_finite_is_refused() -> None:
    sensitivity = random_sensitivity(tiny_vit())
    sensitivity.scores["blocks.0.mlp.fc1.weight"][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"A score of `blocks.0.mlp.fc1.weight` is not a finite number"):
        lora_allocation(sensitivity, budget=100)
