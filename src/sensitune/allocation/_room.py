"""What a budget would be refused for whatever the scores, so that it is refused before they are computed."""

from __future__ import annotations

from sensitune.allocation._budget import read_budget
from sensitune.allocation._cost import Rules, StructuredType, check_rank
from sensitune.allocation._solve import check_tau, check_usable
from sensitune.sites import ModelOutline, Site


def check_budget(
    outline: ModelOutline,
    *,
    budget: int | str | None,
    tau: int | None,
    structured: StructuredType | None,
    rank: int,
    alpha: float,
    beta: float,
    whole_vectors: bool,
) -> None:
    """Refuse what `allocate` would refuse even if every score were above zero.

    Args:
        outline: The model.
        budget: As in `allocate`.
        tau: As in `allocate`; either it or a budget.
        structured: As in `allocate`.
        rank: As in `allocate`.
        alpha: As in `allocate`.
        beta: As in `allocate`.
        whole_vectors: As in `allocate`.

    Raises:
        ArgumentError: If an option is out of range, or `tau` exceeds what is ranked.
        BudgetError: If the budget is below what is always trained, above what can be used, or cannot be read.
    """
    rules = Rules(structured, rank, alpha, beta, whole_vectors)
    check_rank(outline.sites, structured, rank)
    if tau is not None:
        check_tau(outline, tau)
    if budget is not None:
        usable = outline.always_trained_params + sum(_most(site, rules) for site in outline.sites)
        check_usable(rules, read_budget(budget, outline), usable)


def _most(site: Site, rules: Rules) -> int:
    """What a site costs of which every scalar is selected."""
    switched = rules.switched_params(site)
    return site.numel if switched is None or rules.threshold(site) > site.numel else switched
