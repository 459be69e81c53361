"""What the figures add up: parameters per site, of an allocation or among the most sensitive."""

from __future__ import annotations

from dataclasses import dataclass

from sensitune.allocation import Allocation, SiteRow, allocate
from sensitune.errors import ArgumentError
from sensitune.sensitivity import Sensitivity

OUTSIDE = "outside"  # of the blocks


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of all sites, with the words for them.

    Attributes:
        rows: One per site, in the model's order; its `params` are what is counted.
        title: What is counted, at the start of a sentence: ``"Trainable parameters"``.
        whole: What makes up 100 %: ``"the 400,000 trainable parameters"``.
        ranked: Whether they are the most sensitive ones, so that comparing with a site's size says something.
    """

    rows: tuple[SiteRow, ...]
    title: str
    whole: str
    ranked: bool

    @property
    def total(self) -> int:
        """The sum over all sites."""
        return sum(row.params for row in self.rows)

    @property
    def size(self) -> int:
        """The number of parameters that the sites hold in all."""
        return sum(row.size for row in self.rows)


def block_name(row: SiteRow) -> str:
    """The block of a site as a reader sees it."""
    return OUTSIDE if row.block is None else str(row.block)


def count_subject(subject: Allocation | Sensitivity, tau: int | None) -> Counts:
    """What a figure shows of its subject.

    Args:
        subject: An allocation (its trainable parameters) or a sensitivity (its most sensitive parameters).
        tau: How many of the most sensitive; required for a sensitivity, refused for an allocation.

    Returns:
        The counts by site.

    Raises:
        ArgumentError: If `tau` is missing or out of place, or nothing is left to show.
    """
    if isinstance(subject, Sensitivity):
        if tau is None:
            raise ArgumentError("`tau` must say how many of the most sensitive parameters to show. Got None.")
        counts = _count_sensitive(subject, tau)
    else:
        if tau is not None:
            raise ArgumentError(f"`tau` goes with a Sensitivity; an Allocation has its own. Got {tau:,}.")
        counts = _count_trainable(subject)
    if not counts.total:
        raise ArgumentError(f"{counts.title} cannot be drawn: there are none.")
    return counts


def _count_sensitive(sensitivity: Sensitivity, tau: int) -> Counts:
    rows = _selected(sensitivity, tau)
    whole = f"the {sum(row.params for row in rows):,} most sensitive parameters"
    return Counts(rows, "Sensitive parameters", whole, ranked=True)


def _selected(sensitivity: Sensitivity, tau: int) -> tuple[SiteRow, ...]:
    """The tau most sensitive scalars by site: without modules and whole vectors, an allocation is the selection."""
    rows = allocate(sensitivity, tau=tau, structured=None, whole_vectors=False).table()
    return tuple(row for row in rows if row.tuning != "always")


def _count_trainable(allocation: Allocation) -> Counts:
    whole = f"the {allocation.trainable_params:,} trainable parameters, head not counted"
    return Counts(tuple(allocation.table()), "Trainable parameters", whole, ranked=False)
