"""What each way of tuning a site captures of its gradient, and for how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sensitune.allocation._cut import Floats, flat_array
from sensitune.allocation._spectrum import as_matrix, finite_gradient, leading_energies
from sensitune.sensitivity import Sensitivity
from sensitune.sites import Site


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


def make_offer(sensitivity: Sensitivity, site: Site, most: int, structured: str | None, max_rank: int | None) -> Offer:
    """Both curves of a site, as far as they could ever be followed.

    Args:
        sensitivity: Estimated with ``keep_gradients=True``.
        site: One of its sites.
        most: What there is to spend at most.
        structured: None = single entries only.
        max_rank: Highest rank of a module; None = no limit.

    Returns:
        The offer.

    Raises:
        ArgumentError: If the sensitivity holds no gradients.
        NonFiniteError: If a gradient is not finite.
    """
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
