"""`allocate` does what a slow, obvious walk over single scalars does, and says no in clear sentences."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sites import make_site, make_slices

from sensitune.allocation import Allocation, allocate, module_params
from sensitune.allocation._cost import Rules
from sensitune.allocation._cut import Cut, find_cut
from sensitune.allocation._ranking import rank_candidates, ranking_floor
from sensitune.errors import ArgumentError, BudgetError, NonFiniteError
from sensitune.sensitivity import Sensitivity
from sensitune.sensitivity._renamed import RenamedTensors
from sensitune.sites import ModelOutline, Site

Make = Callable[..., ModelOutline]
SHAPES = st.one_of(
    st.tuples(st.integers(1, 9)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)),
)


@dataclass
class Walked:
    """The reference: plain dictionaries, one scalar at a time."""

    counts: dict[int, int] = field(default_factory=dict)
    entries: dict[int, list[int]] = field(default_factory=dict)
    whole: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    cost: int = 0


def ranked(sensitivity: Sensitivity) -> list[tuple[int, int]]:
    """All positive scalars as (site, index), most sensitive first; ties by site order, then lower index."""
    flat = [sensitivity.score_of(site).flatten().tolist() for site in sensitivity.sites]
    scalars = [(-score, site, index) for site, scores in enumerate(flat) for index, score in enumerate(scores) if score]
    return [(site, index) for _, site, index in sorted(scalars)]


def size_if_whole(site: Site, options: dict[str, Any]) -> int | None:
    if site.kind == "matrix" and options["structured"]:
        return module_params(site, options["structured"], options["rank"])
    return site.numel if site.kind == "vector" and options["whole_vectors"] else None


def slow_walk(sensitivity: Sensitivity, options: dict[str, Any], *, limit: float, tau: int | None = None) -> Walked:
    state = Walked(cost=sensitivity.outline.always_trained_params)
    for number, index in ranked(sensitivity)[:tau]:
        if state.cost == limit:
            break
        if number in state.whole:
            continue
        site = sensitivity.sites[number]
        size = size_if_whole(site, options)
        count = state.counts.get(number, 0) + 1
        share = options["alpha"] if site.kind == "matrix" else options["beta"]
        if size is not None and number not in state.refused and count >= size / share:
            if state.cost + size - (count - 1) <= limit:
                state.cost += size - (count - 1)
                state.whole.add(number)
                state.entries.pop(number, None)
                continue
            state.refused.add(number)
        state.counts[number] = count
        state.entries.setdefault(number, []).append(index)
        state.cost += 1
    return state


def choices(allocation: Allocation) -> dict[str, Any]:
    """What two allocations must agree on."""
    sparse = {name: indices.tolist() for name, indices in allocation.sparse.items()}
    return {"structured": tuple(allocation.structured), "vectors": allocation.vectors, "sparse": sparse}


def expected(state: Walked, sensitivity: Sensitivity) -> dict[str, Any]:
    sites = sensitivity.sites
    whole = [sites[number] for number in sorted(state.whole)]
    return {
        "structured": tuple(site.id for site in whole if site.kind == "matrix"),
        "vectors": tuple(site.id for site in whole if site.kind == "vector"),
        "sparse": {sites[number].id: sorted(indices) for number, indices in state.entries.items()},
    }


@st.composite
def problems(draw: st.DrawFn, make: Make) -> tuple[Sensitivity, dict[str, Any]]:
    """Small models whose scores are full of ties and zeros, with any options."""
    outline = make(draw(st.lists(SHAPES, min_size=1, max_size=6)), token=draw(st.sampled_from([0, 3])))
    levels = draw(st.sampled_from([1, 2, 4, 1000]))
    numbers = [draw(st.lists(st.integers(0, levels), min_size=s.numel, max_size=s.numel)) for s in outline.sites]
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    scores = {
        site.parameter: torch.tensor(values, dtype=dtype).reshape(site.shape)
        for site, values in zip(outline.sites, numbers, strict=True)
    }
    options = {
        "structured": draw(st.sampled_from(["lora", "adapter", None])),
        "rank": draw(st.integers(1, 3)),
        "alpha": draw(st.sampled_from([1.0, 1.1, 3.0, 10.0])),
        "beta": draw(st.sampled_from([1.0, 2.5, 5.0])),
        "whole_vectors": draw(st.booleans()),
    }
    return Sensitivity(scores, outline, {}), options


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_fixed_tau_selects_what_the_slow_walk_selects(make_outline: Make, data: st.DataObject) -> None:
    sensitivity, options = data.draw(problems(make_outline))
    positive = len(ranked(sensitivity))
    if not positive:
        with pytest.raises(ArgumentError, match="Every score is zero, so nothing can be selected"):
            allocate(sensitivity, tau=1, **options)
        return
    tau = data.draw(st.integers(1, sum(site.numel for site in sensitivity.sites)))
    allocation = allocate(sensitivity, tau=tau, **options)
    reference = slow_walk(sensitivity, options, limit=float("inf"), tau=tau)
    assert choices(allocation) == expected(reference, sensitivity)
    assert allocation.trainable_params == reference.cost
    assert allocation.tau == min(tau, positive)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_budget_selects_what_the_slow_walk_selects_or_is_refused(make_outline: Make, data: st.DataObject) -> None:
    sensitivity, options = data.draw(problems(make_outline))
    least = sensitivity.outline.always_trained_params
    usable = slow_walk(sensitivity, options, limit=float("inf")).cost
    for budget in range(max(least, 1), usable + 3):
        reference = slow_walk(sensitivity, options, limit=budget)
        if budget > usable:
            with pytest.raises(BudgetError, match=rf"exceeds what .* can use \({usable}\)"):
                allocate(sensitivity, budget=budget, **options)
        elif reference.cost < budget:
            with pytest.raises(BudgetError, match=f"cannot be spent exactly: {budget - reference.cost} are left"):
                allocate(sensitivity, budget=budget, **options)
        else:
            allocation = allocate(sensitivity, budget=budget, **options)
            assert allocation.trainable_params == budget
            assert choices(allocation) == expected(reference, sensitivity)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_budget_equal_to_the_cost_of_a_tau_gives_the_allocation_of_that_tau(
    make_outline: Make, data: st.DataObject
) -> None:
    sensitivity, options = data.draw(problems(make_outline).filter(lambda problem: len(ranked(problem[0])) > 0))
    by_tau = allocate(sensitivity, tau=data.draw(st.integers(1, len(ranked(sensitivity)))), **options)
    by_budget = allocate(sensitivity, budget=by_tau.trainable_params, **options)
    assert choices(by_budget) == choices(by_tau)
    # The walk stops at the last scalar that costs something; tau may go on through scalars that are free.
    assert by_budget.tau is not None
    assert by_tau.tau is not None
    assert by_budget.tau <= by_tau.tau
    assert choices(allocate(sensitivity, tau=by_budget.tau, **options)) == choices(by_tau)


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_list_of_budgets_gives_what_each_budget_gives_alone(make_outline: Make, data: st.DataObject) -> None:
    sensitivity, options = data.draw(problems(make_outline))
    usable = slow_walk(sensitivity, options, limit=float("inf")).cost
    possible = [b for b in range(1, usable + 1) if slow_walk(sensitivity, options, limit=b).cost == b]
    if not possible:
        return
    budgets = data.draw(st.lists(st.sampled_from(possible), min_size=1, max_size=4))
    together = allocate(sensitivity, budget=budgets, **options)
    alone = [allocate(sensitivity, budget=budget, **options) for budget in budgets]
    assert [choices(one) for one in together] == [choices(one) for one in alone]
    assert [one.budget for one in together] == budgets


def uniform_scores(outline: ModelOutline, *, seed: int = 0) -> Sensitivity:
    generator = torch.Generator().manual_seed(seed)
    scores = {site.parameter: torch.rand(site.shape, generator=generator) for site in outline.sites}
    return Sensitivity(scores, outline, {"criterion": "squared_gradient", "num_batches": 4, "seconds": 1.0})


def test_renaming_modules_changes_nothing(make_outline: Make) -> None:
    outline = make_outline([(30, 30), (30,), (30, 60)], token=4)
    sensitivity = uniform_scores(outline)
    sites = tuple(replace(site, id=f"renamed.{site.id}", parameter=f"renamed.{site.id}") for site in outline.sites)
    scores = {f"renamed.{name}": score for name, score in sensitivity.scores.items()}
    renamed = Sensitivity(scores, replace(outline, sites=sites), {})
    first, second = (allocate(one, budget=250, rank=2) for one in (sensitivity, renamed))
    assert [f"renamed.{name}" for name in first.structured] == list(second.structured)
    assert [indices.tolist() for indices in first.sparse.values()] == [x.tolist() for x in second.sparse.values()]


def test_slices_of_one_parameter_are_ranked_as_sites_of_their_own() -> None:
    outline = ModelOutline(make_slices("qkv", "qkv", (4, 5)), (), 0, {}, {}, 60)
    scores = torch.zeros(12, 5)
    scores[4, 0], scores[9, 3] = 2.0, 1.0
    allocation = allocate(Sensitivity({"qkv": scores}, outline, {}), tau=2, structured=None)
    assert {name: indices.tolist() for name, indices in allocation.sparse.items()} == {"qkv[k]": [0], "qkv[v]": [8]}


def test_a_column_slice_of_a_transposed_weight_is_indexed_within_the_slice() -> None:
    site = make_site("c_attn[k]", (3, 4), parameter="c_attn", rows=(4, 8), transposed=True)
    scores = torch.zeros(3, 12)
    scores[2, 5] = 1.0
    outline = ModelOutline((site,), (), 0, {}, {}, 36)
    allocation = allocate(Sensitivity({"c_attn": scores}, outline, {}), tau=1, structured=None)
    assert allocation.sparse["c_attn[k]"].tolist() == [2 * 4 + 1]


def test_large_pools_are_compacted_without_changing_the_selection(
    make_outline: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensitivity = uniform_scores(make_outline([(20, 20)] * 12, token=1))
    whole = allocate(sensitivity, budget=51, structured=None)
    monkeypatch.setattr("sensitune.allocation._cut._MIN_POOL", 1)
    assert choices(allocate(sensitivity, budget=51, structured=None)) == choices(whole)


def test_a_ranking_that_ends_at_the_budget_selects_the_same(
    make_outline: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensitivity = uniform_scores(make_outline([(60, 40), (60,), (40, 60), (40,)] * 6, token=3))
    budgets = [10, 100, 400, 1000, 2000]
    monkeypatch.setattr("sensitune.allocation._solve.ranking_floor", lambda *_: Cut(np.float32(0), 0))
    whole = allocate(sensitivity, budget=budgets, rank=2)
    monkeypatch.undo()
    monkeypatch.setattr("sensitune.allocation._cut._MIN_POOL", 1)
    ended = allocate(sensitivity, budget=budgets, rank=2)
    assert [choices(one) for one in ended] == [choices(one) for one in whole]
    assert [one.tau for one in ended] == [one.tau for one in whole]


def test_a_small_budget_ranks_few_candidates(make_outline: Make) -> None:
    outline = make_outline([(60, 40)] * 20)
    views = [torch.rand(site.shape) for site in outline.sites]
    rules = Rules("lora", rank=2, alpha=10.0)
    floor = ranking_floor(outline.sites, views, rules, 100)
    ranking = rank_candidates(outline.sites, views, rules, 100, floor)
    assert 100 <= ranking.score.size <= 100 * rules.alpha


@pytest.mark.parametrize("levels", [2, 50, 10**6])
@pytest.mark.parametrize("count", [1, 7, 100, 3000])
def test_a_cut_is_where_sorting_puts_it(levels: int, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    views = [torch.randint(levels, (size,), generator=generator).float() for size in (10_000, 1, 200_000)]
    views[0][::61] = 0  # the sample sees nothing of the first
    cut = find_cut(views, count)
    highest = torch.cat(views).sort(descending=True).values[:count]
    if highest[-1] == 0:
        assert (cut.value, cut.ties) == (0, 0)
    else:
        assert cut.value == highest[-1].item()
        assert cut.ties == int((highest == highest[-1]).sum())


@pytest.mark.parametrize("asked", [{"budget": [100, 300]}, {"tau": 400}])
def test_scores_on_the_disk_are_taken_up_one_tensor_at_a_time(
    make_outline: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    outline = make_outline([(60, 40), (60,)] * 4)
    sensitivity = uniform_scores(outline)
    sensitivity.save(tmp_path / "scores.safetensors")
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    read = RenamedTensors.__getitem__

    def watched(self: RenamedTensors, name: str) -> torch.Tensor:
        nonlocal most
        score = read(self, name)
        most = max(most, sum(reference() is not None for reference in alive))
        alive.append(weakref.ref(score))
        return score

    monkeypatch.setattr(RenamedTensors, "__getitem__", watched)
    lazy = Sensitivity.load(tmp_path / "scores.safetensors", lazy=True)
    found, expected = allocate(lazy, **asked), allocate(sensitivity, **asked)
    pairs = zip(found, expected, strict=True) if isinstance(found, list) else [(found, expected)]
    assert all(choices(first) == choices(second) for first, second in pairs)
    assert most <= 2  # the one in hand, and the one before until its name is taken


def test_nothing_but_the_class_token_is_trained_at_the_smallest_budget(make_outline: Make) -> None:
    allocation = allocate(uniform_scores(make_outline([(4, 4)], token=768)), budget=768)
    assert (allocation.trainable_params, allocation.num_sites, allocation.tau) == (768, 0, 0)


def test_the_origin_of_the_scores_travels_with_the_allocation(make_outline: Make) -> None:
    allocation = allocate(uniform_scores(make_outline([(4, 4)])), budget=5)
    assert allocation.metadata == {"criterion": "squared_gradient", "num_batches": 4}
    assert (allocation.rule, allocation.alpha, allocation.beta, allocation.budget) == ("spt", 10.0, 5.0, 5)


def test_a_share_of_the_backbone_is_a_budget(make_outline: Make) -> None:
    outline = make_outline([(40, 40)], token=4)
    assert allocate(uniform_scores(outline), budget="5%").trainable_params == (1600 + 4 + 100) * 5 // 100


@pytest.mark.parametrize("chosen", [{}, {"budget": 10, "tau": 10}])
def test_exactly_one_of_budget_and_tau_is_needed(make_outline: Make, chosen: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match=r"Give exactly one of `budget` and `tau`. Got (neither|both)."):
        allocate(uniform_scores(make_outline([(4, 4)])), **chosen)  # type: ignore[call-overload]


def test_a_budget_below_the_class_token_is_refused(make_outline: Make) -> None:
    sentence = r"`budget` must be at least 768 parameters \(the class token is always trained\). Got 500."
    with pytest.raises(BudgetError, match=sentence):
        allocate(uniform_scores(make_outline([(4, 4)], token=768)), budget=500)


def test_several_tokens_are_named_when_a_budget_is_too_small(make_outline: Make) -> None:
    outline = make_outline([(4, 4)])
    tokens = {"cls_token": (1, 1, 4), "reg_token": (1, 4, 4)}
    sensitivity = uniform_scores(replace(outline, always_trained=tokens))
    with pytest.raises(BudgetError, match=r"at least 20 parameters \(cls_token, reg_token are always trained\). Got 0"):
        allocate(sensitivity, budget=0)


def test_a_budget_of_nothing_is_refused(make_outline: Make) -> None:
    with pytest.raises(BudgetError, match=r"`budget` must be at least 1 parameter. Got 0."):
        allocate(uniform_scores(make_outline([(4, 4)])), budget=0)
    with pytest.raises(BudgetError, match=r"`budget` must hold at least one budget. Got an empty list."):
        allocate(uniform_scores(make_outline([(4, 4)])), budget=[])


def test_a_budget_above_what_can_be_used_is_refused_with_the_way_out(make_outline: Make) -> None:
    sensitivity = uniform_scores(make_outline([(200, 100), (100,)], token=4))
    with pytest.raises(
        BudgetError, match=r"`budget` 60,000 exceeds what rank 4 can use \(1,304\). Raise `rank` or lower `budget`."
    ):
        allocate(sensitivity, budget="60k", rank=4)
    with pytest.raises(BudgetError, match=r"exceeds what sparse tuning can use \(20,104\). Lower `budget`."):
        allocate(sensitivity, budget=60_000, structured=None)


def test_the_largest_usable_budget_tunes_everything(make_outline: Make) -> None:
    allocation = allocate(uniform_scores(make_outline([(200, 100), (100,)], token=4)), budget=1_304, rank=4)
    assert (len(allocation.structured), len(allocation.vectors), allocation.sparse) == (1, 1, {})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alpha": 0.5}, "`alpha` must be a number of at least 1, .* Got 0.5."),
        ({"beta": 0.0}, "`beta` must be a number of at least 1, .* Got 0.0."),
        ({"alpha": float("nan")}, "`alpha` must be a number of at least 1, .* Got nan."),
        ({"rank": 0}, "`rank` must be at least 1. Got 0."),
        ({"structured": "prefix"}, r"`structured` must be 'lora', 'adapter' or None \(sparse only\). Got 'prefix'."),
        ({"tau": 0, "budget": None}, "`tau` must lie between 1 and the 16 scalars that are ranked. Got 0."),
        ({"tau": 17, "budget": None}, "`tau` must lie between 1 and the 16 scalars that are ranked. Got 17."),
    ],
)
def test_an_option_out_of_range_is_refused(make_outline: Make, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        allocate(uniform_scores(make_outline([(4, 4)])), **{"budget": 5, **options})


@pytest.mark.parametrize(
    ("value", "error", "sentence"),
    [
        (float("nan"), NonFiniteError, "A score of `blocks.0.matrix` is not a finite number."),
        (float("inf"), NonFiniteError, "A score of `blocks.0.matrix` is not a finite number."),
        (-1.0, ArgumentError, r"Scores must not be negative. Got -1.0 in `blocks.0.matrix`."),
    ],
)
def test_a_score_that_cannot_be_ranked_is_refused(
    make_outline: Make, value: float, error: type[Exception], sentence: str
) -> None:
    sensitivity = uniform_scores(make_outline([(4, 4)]))
    sensitivity.scores["blocks.0.matrix"][1, 2] = value
    with pytest.raises(error, match=sentence):
        allocate(sensitivity, budget=5)
