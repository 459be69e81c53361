"""What the figures add up: parameters per site, of an allocation or among the most sensitive."""

from __future__ import annotations

from dataclasses import dataclass

from sensitune.allocation import Allocation, allocate
from sensitune.errors import ArgumentError
from sensitune.sensitivity import Sensitivity


@dataclass(frozen=True, slots=True)
class SiteCount:
    """Parameters of one site that a figure shows.

    Attributes:
        block: Index of the block; None outside the blocks.
        operation: Name of the operation.
        part: How they are tuned (``"structured"``, ``"vector"``, ``"sparse"``, ``"always"``), or ``"sensitive"``.
        params: How many are shown.
        size: How many the site holds in all.
    """

    block: int | None
    operation: str
    part: str
    params: int
    size: int


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of all sites, with the words for them.

    Attributes:
        sites: One entry per site, in the model's order.
        title: What is counted, at the start of a sentence: ``"Trainable parameters"``.
        whole: What makes up 100 %: ``"the 400,000 trainable parameters"``.
        ranked: Whether the sites were ranked by score, so that comparing with their size says something.
    """

    sites: tuple[SiteCount, ...]
    title: str
    whole: str
    ranked: bool

    @property
    def total(self) -> int:
        """The sum over all sites."""
        return sum(site.params for site in self.sites)

    @property
    def size(self) -> int:
        """The number of parameters that the sites hold in all."""
        return sum(site.size for site in self.sites)


def sensitive_counts(sensitivity: Sensitivity, *, tau: int) -> dict[str, int]:
    """Count the tau most sensitive scalars by site, as `allocate` selects them.

    Args:
        sensitivity: The scores.
        tau: How many scalars are selected, over all ranked sites together; fewer if the other scores are zero.

    Returns:
        Site id -> number of selected scalars, for every ranked site; sites without one count 0.

    Raises:
        ArgumentError: If `tau` is below 1 or above the number of ranked scalars, or every score is zero.
    """
    # Without modules and whole vectors, an allocation is the selection itself.
    selection = allocate(sensitivity, tau=tau, structured=None, whole_vectors=False).sparse
    return {site.id: selection[site.id].numel() if site.id in selection else 0 for site in sensitivity.sites}


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
    by_site = sensitive_counts(sensitivity, tau=tau)
    sites = [
        SiteCount(site.block, site.operation, "sensitive", by_site[site.id], site.numel) for site in sensitivity.sites
    ]
    whole = f"the {sum(by_site.values()):,} most sensitive parameters"
    return Counts(tuple(sites), "Sensitive parameters", whole, ranked=True)


def _count_trainable(allocation: Allocation) -> Counts:
    sizes = {site.id: site.numel for site in allocation.outline.sites}
    rows = allocation.table()
    sites = [
        SiteCount(row["block"], row["operation"], row["tuning"], row["params"], sizes.get(row["site"], row["params"]))
        for row in rows
    ]
    whole = f"the {allocation.trainable_params:,} trainable parameters, head not counted"
    return Counts(tuple(sites), "Trainable parameters", whole, ranked=False)
