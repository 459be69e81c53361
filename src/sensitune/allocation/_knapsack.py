"""Spend a budget where the gain per parameter is highest, with a rank of its own for every matrix.

The gain of a way of tuning a site is how much of its accumulated gradient G it captures, as a squared Frobenius norm:

- c single entries capture the sum of their squares ``G[i]²``, at 1 parameter each;
- a LoRA of rank k captures at most ``Σ_{i≤k} σ_i(G)²`` (Eckart and Young, 1936), at ``in + out`` parameters for each
  further rank.

Both are, but for the learning rate, how far the loss falls to first order under one step of gradient descent on what is
trained (of a LoRA: on ``up``, when ``down`` holds the leading right singular vectors), so they are of one unit. Either
alone has falling returns and is filled from the top. A matrix is tuned in one of the two ways, never in both, so
nothing is counted twice; what makes the problem hard is that the better of two such curves has a kink.

It is solved by a price λ per parameter (Everett, 1963): at a given price every site answers for itself, with whichever
way has the highest gain − λ·cost, and that answer is exact. The price is brought down to the lowest at which all
answers together can be paid. A site that changes its way there would have overspent; what is left, less than that one
step, is filled greedily, with single entries in the end, so that the cost is the budget exactly. (Where too few entries
are free for that, as only in tiny models, a module makes room for entries.) No choice of equal cost captures more than
``gain_bound`` = Σ (gain − λ·cost) + λ·budget, which is recorded beside the gain that was reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, overload

import torch

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import Budgets, read_budgets
from sensitune.allocation._cut import find_cut, indices_above
from sensitune.allocation._matrices import servable_part
from sensitune.allocation._offers import Choice, Offer, make_offer
from sensitune.allocation._problem import origin_of
from sensitune.allocation._spectrum import finite_gradient
from sensitune.allocation._spending import fill, settle, total_cost, total_gain
from sensitune.errors import ArgumentError, BudgetError
from sensitune.sensitivity import Sensitivity


@overload
def knapsack_allocation(
    sensitivity: Sensitivity,
    *,
    budget: int | str,
    structured: Literal["lora"] | None = "lora",
    max_rank: int | None = None,
    servable: bool = False,
) -> Allocation: ...


@overload
def knapsack_allocation(
    sensitivity: Sensitivity,
    *,
    budget: Budgets,
    structured: Literal["lora"] | None = "lora",
    max_rank: int | None = None,
    servable: bool = False,
) -> list[Allocation]: ...


def knapsack_allocation(
    sensitivity: Sensitivity,
    *,
    budget: int | str | Budgets,
    structured: Literal["lora"] | None = "lora",
    max_rank: int | None = None,
    servable: bool = False,
) -> Allocation | list[Allocation]:
    """Choose what captures most of the accumulated gradient at a given number of parameters.

    Every matrix gets a LoRA of its own rank, or single entries, or nothing; every other site single entries, a vector
    of which all are chosen is tuned whole. The cost equals the budget exactly. A rank-k LoRA captures what it is
    credited with if its down projection spans the k leading right singular vectors: start it from `compute_lora_start`.

    Args:
        sensitivity: Estimated with ``keep_gradients=True``; its scores are not used.
        budget: As in `allocate`, a list included.
        structured: ``"lora"``, or None = single entries only.
        max_rank: Highest rank of a module; None = no limit.
        servable: As in `allocate`.

    Returns:
        The allocation, or one per budget, with ``rule="knapsack"``. Its metadata says the ``gain`` (squared Frobenius
        norm of what is captured), the ``gain_bound`` (what no choice of that cost exceeds) and the ``energy`` of the
        whole gradient.

    Raises:
        ArgumentError: If the sensitivity holds no gradients, or an option is out of range.
        ModelError: If only matrices are wanted (`servable`) and there is none.
        BudgetError: If a budget is below what is always trained, exceeds what has a gradient, or cannot be read.
        NonFiniteError: If a gradient is not finite.

    Source:
        Ours. The price is Everett's method of generalised Lagrange multipliers (Operations Research 11, 1963).
    """
    _check_options(structured, max_rank)
    if servable:
        sensitivity = servable_part(sensitivity, structured)
    outline = sensitivity.outline
    budgets = read_budgets(budget, outline)
    most = max(max(budgets) - outline.always_trained_params, 1)
    offers = [make_offer(sensitivity, site, most, structured, max_rank) for site in outline.sites]
    allocations = [_allocation(sensitivity, offers, one) for one in budgets]
    return allocations if isinstance(budget, (list, tuple)) else allocations[0]


def _allocation(sensitivity: Sensitivity, offers: Sequence[Offer], budget: int) -> Allocation:
    params = budget - sensitivity.outline.always_trained_params
    settled, price = settle(offers, params)
    left = params - total_cost(settled)
    bound = total_gain(settled) + price * left
    choices = fill(offers, settled, left)
    while total_cost(choices) < params:
        offers = _give_up_a_module(offers, choices, budget, sensitivity.outline.always_trained_params)
        settled, _ = settle(offers, params)
        choices = fill(offers, settled, params - total_cost(settled))
    energy = sum(offer.energy for offer in offers)
    found = {"gain": total_gain(choices), "gain_bound": bound, "energy": energy}
    return _build(sensitivity, offers, choices, budget, found)


def _give_up_a_module(offers: Sequence[Offer], choices: Sequence[Choice], budget: int, always: int) -> list[Offer]:
    """Where too few entries are free to spend the rest on, the module that gains least makes room for entries."""
    modules = [number for number, one in enumerate(choices) if one.count and one.curve is offers[number].ranks]
    if not modules:
        usable = always + sum(offer.entries.items.size for offer in offers)
        raise BudgetError(
            f"`budget` {budget:,} exceeds the {usable:,} scalars that have a gradient or are always trained. "
            "Lower `budget`."
        )
    least = min(modules, key=lambda number: choices[number].gain)
    return [replace(offer, ranks=None) if number == least else offer for number, offer in enumerate(offers)]


def _build(
    sensitivity: Sensitivity,
    offers: Sequence[Offer],
    choices: Sequence[Choice],
    budget: int,
    energies: Mapping[str, float],
) -> Allocation:
    outline = sensitivity.outline
    ranks, vectors, sparse = {}, [], {}
    for site, offer, choice in zip(outline.sites, offers, choices, strict=True):
        if not choice.count:
            continue
        if choice.curve is offer.ranks:
            ranks[site.id] = choice.count
        elif site.kind == "vector" and choice.count == site.numel:
            vectors.append(site.id)
        else:
            sizes = [finite_gradient(sensitivity, site).abs()]
            sparse[site.id] = torch.from_numpy(next(indices_above(sizes, find_cut(sizes, choice.count)))[0])
    return Allocation(
        outline=outline,
        structured=ranks,
        vectors=tuple(vectors),
        sparse=sparse,
        structured_type="lora" if ranks else None,
        budget=budget,
        rule="knapsack",
        always_trained=tuple(outline.always_trained),
        metadata=origin_of(sensitivity) | {"criterion": "accumulated_gradient"} | dict(energies),
    )


def _check_options(structured: str | None, max_rank: int | None) -> None:
    if structured not in {"lora", None}:
        raise ArgumentError(
            f"`structured` must be 'lora' or None: what an Adapter captures of a gradient is not known. "
            f"Got {structured!r}."
        )
    if max_rank is not None and max_rank < 1:
        raise ArgumentError(f"`max_rank` must be at least 1, or None for no limit. Got {max_rank}.")
