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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, overload

import numpy as np
import torch

from sensitune.allocation._allocate import Budgets, check_minimum, origin_of
from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import parse_budget
from sensitune.allocation._cut import Floats, find_cut, flat_array, indices_above
from sensitune.allocation._spectrum import as_matrix, finite_gradient, leading_energies
from sensitune.errors import ArgumentError, BudgetError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import Site


@overload
def knapsack_allocation(
    sensitivity: Sensitivity,
    *,
    budget: int | str,
    structured: Literal["lora"] | None = "lora",
    max_rank: int | None = None,
) -> Allocation: ...


@overload
def knapsack_allocation(
    sensitivity: Sensitivity,
    *,
    budget: Budgets,
    structured: Literal["lora"] | None = "lora",
    max_rank: int | None = None,
) -> list[Allocation]: ...


def knapsack_allocation(
    sensitivity: Sensitivity,
    *,
    budget: int | str | Budgets,
    structured: Literal["lora"] | None = "lora",
    max_rank: int | None = None,
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

    Returns:
        The allocation, or one per budget, with ``rule="knapsack"``. Its metadata says the ``gain`` (squared Frobenius
        norm of what is captured), the ``gain_bound`` (what no choice of that cost exceeds) and the ``energy`` of the
        whole gradient.

    Raises:
        ArgumentError: If the sensitivity holds no gradients, or an option is out of range.
        BudgetError: If a budget is below what is always trained, exceeds what has a gradient, or cannot be read.
        NonFiniteError: If a gradient is not finite.

    Source:
        Ours. The price is Everett's method of generalised Lagrange multipliers (Operations Research 11, 1963).
    """
    _check_options(structured, max_rank)
    outline = sensitivity.outline
    budgets = [
        parse_budget(one, outline.backbone_params)
        for one in (budget if isinstance(budget, (list, tuple)) else [budget])
    ]
    check_minimum(outline, budgets)
    most = max(max(budgets) - outline.always_trained_params, 1)
    offers = [_offer(sensitivity, site, most, structured, max_rank) for site in outline.sites]
    allocations = [_allocation(sensitivity, offers, one) for one in budgets]
    return allocations if isinstance(budget, (list, tuple)) else allocations[0]


@dataclass(frozen=True, eq=False)
class Curve:
    """What one way of tuning a site captures: items of one cost and falling gain.

    Attributes:
        step: Parameters per item.
        items: ``[n]`` gain of each item, falling.
        gains: ``[n + 1]`` gain of the first 0, 1, ..., n items.
    """

    step: int
    items: Floats
    gains: Floats

    @classmethod
    def build(cls, step: int, items: Floats) -> Curve:
        """A curve from its items."""
        return cls(step, items, np.concatenate([np.zeros(1), np.cumsum(items)]))

    def worth(self, price: float) -> int:
        """How many items gain more than they cost."""
        return int(self.items.size - np.searchsorted(self.items[::-1], price * self.step, side="right"))


@dataclass(frozen=True, slots=True)
class Offer:
    """The ways in which one site can be tuned.

    Attributes:
        entries: Single entries.
        ranks: Ranks of a LoRA; None where there is none.
        energy: Squared Frobenius norm of the site's gradient.
    """

    entries: Curve
    ranks: Curve | None
    energy: float

    @property
    def curves(self) -> tuple[Curve, ...]:
        """The ways there are."""
        return (self.entries,) if self.ranks is None else (self.entries, self.ranks)


@dataclass(frozen=True, slots=True)
class Choice:
    """How one site is tuned: the first `count` items of a curve."""

    curve: Curve
    count: int

    @property
    def cost(self) -> int:
        """Parameters."""
        return self.count * self.curve.step

    @property
    def gain(self) -> float:
        """What is captured."""
        return float(self.curve.gains[self.count])


def _offer(sensitivity: Sensitivity, site: Site, most: int, structured: str | None, max_rank: int | None) -> Offer:
    """Both curves of a site, as far as `most` parameters could ever follow them."""
    gradient = finite_gradient(sensitivity, site)
    squares = np.square(flat_array(gradient), dtype=np.float64)
    energy = float(squares.sum())
    if squares.size > most:
        squares = np.partition(squares, squares.size - most)[squares.size - most :]
    entries = Curve.build(1, -np.sort(-squares[squares > 0]))
    if structured is None or site.kind != "matrix":
        return Offer(entries, None, energy)
    step = site.in_features + site.out_features
    # From n / (in + out) ranks on, all n entries cost no more and capture everything.
    last = min(most // step, (site.numel - 1) // step, max_rank or site.numel)
    energies = leading_energies(as_matrix(site, gradient), last) if last else np.empty(0)
    return Offer(entries, Curve.build(step, energies), energy)


def respond(offers: Sequence[Offer], price: float) -> list[Choice]:
    """The best choice of every site at a price per parameter; the cheaper one of two equally good."""

    def best(offer: Offer) -> Choice:
        choices = [Choice(curve, curve.worth(price)) for curve in offer.curves]
        return max(choices, key=lambda one: (one.gain - price * one.cost, -one.cost))

    return [best(offer) for offer in offers]


def settle(offers: Sequence[Offer], params: int) -> tuple[list[Choice], float]:
    """The choices at the lowest price at which they can be paid together, and that price.

    Args:
        offers: One per site.
        params: What there is to spend.

    Returns:
        One choice per site, costing at most `params` together, and the price.
    """
    free = respond(offers, 0.0)
    if total_cost(free) <= params:
        return free, 0.0
    rates = [float(curve.items[0]) / curve.step for offer in offers for curve in offer.curves if curve.items.size]
    low, high = 0.0, math.nextafter(max(rates), math.inf)  # above the highest rate nothing is worth its price
    choices = respond(offers, high)
    while low < (price := (low + high) / 2) < high and total_cost(choices) < params:
        answer = respond(offers, price)
        if total_cost(answer) <= params:
            choices, high = answer, price
        else:
            low = price
    return choices, high


def fill(offers: Sequence[Offer], choices: Sequence[Choice], left: int) -> list[Choice]:
    """Spend what is left: on a module or a higher rank while that beats single entries, then on single entries.

    Args:
        offers: One per site.
        choices: One per site.
        left: Parameters to spend.

    Returns:
        New choices. They leave something over if there are too few entries to buy.
    """
    best, filled = list(choices), _with_entries(offers, choices, left)
    while (upgrade := _best_upgrade(offers, best, left)) is not None:
        site, choice = upgrade
        left -= choice.cost - best[site].cost
        best[site] = choice
        instead = _with_entries(offers, best, left)
        if (total_cost(instead), total_gain(instead)) <= (total_cost(filled), total_gain(filled)):
            break
        filled = instead
    return filled


def _best_upgrade(offers: Sequence[Offer], choices: Sequence[Choice], left: int) -> tuple[int, Choice] | None:
    """The site and rank, within `left` further parameters, that gain most per parameter over what the site has."""
    best_rate, found = 0.0, None
    for number, (offer, now) in enumerate(zip(offers, choices, strict=True)):
        if offer.ranks is None:
            continue
        affordable = min((now.cost + left) // offer.ranks.step, offer.ranks.items.size)
        ranks = np.arange(now.cost // offer.ranks.step + 1, affordable + 1)
        if ranks.size:
            rates = (offer.ranks.gains[ranks] - now.gain) / (ranks * offer.ranks.step - now.cost)
            best = int(rates.argmax())
            if rates[best] > best_rate:
                best_rate, found = float(rates[best]), (number, Choice(offer.ranks, int(ranks[best])))
    return found


def _with_entries(offers: Sequence[Offer], choices: Sequence[Choice], left: int) -> list[Choice]:
    """The same choices with the `left` best further entries of the sites that have no module."""
    bare = [number for number, one in enumerate(choices) if one.curve is offers[number].entries or not one.count]
    further = [offers[number].entries.items[choices[number].count :][:left] for number in bare]
    owner = np.repeat(np.array(bare, dtype=np.int64), [items.size for items in further])
    # Stable: of equal entries the first site's, as everywhere.
    best = np.argsort(-np.concatenate([np.empty(0), *further]), kind="stable")[:left]
    bought = np.bincount(owner[best], minlength=len(choices)).tolist()
    filled = list(choices)
    for number in bare:
        filled[number] = Choice(offers[number].entries, choices[number].count + bought[number])
    return filled


def total_cost(choices: Sequence[Choice]) -> int:
    """Parameters of all choices together."""
    return sum(choice.cost for choice in choices)


def total_gain(choices: Sequence[Choice]) -> float:
    """What all choices capture together."""
    return sum(choice.gain for choice in choices)


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
