"""Choose among the offers of all sites: the best choices at a price, the price that can be paid, and the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sensitune.allocation._offers import Choice, Offer


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
