"""The same share of every linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import check_maximum, read_budget
from sensitune.allocation._cut import find_cut, indices_above
from sensitune.allocation._problem import check_scores
from sensitune.allocation.baselines._sparse import sparse_allocation
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline, Site


def layerwise_allocation(sensitivity: Sensitivity, *, budget: int | str) -> Allocation:
    """The highest scores of every linear layer, the same share of each.

    With ``criterion="magnitude"`` this is Super-Tuning's choice: the largest weights of each layer. A layer is a stored
    weight: q, k and v of one fused projection share one ranking.

    Args:
        sensitivity: The scores.
        budget: As in `allocate`, one only.

    Returns:
        A purely sparse allocation with ``rule="layerwise"``. Where the share is not a whole number of entries, the
        layers that miss most of one get it, so that the cost is the budget exactly.

    Raises:
        BudgetError: If the budget is below what is always trained, above what can be used, or cannot be read.
        ArgumentError: If a score is negative.
        NonFiniteError: If a score is not finite.

    Source:
        Super-Tuning (arXiv 2607.09287), as in PEFT 0.21.2: of each targeted weight, the ``int(n · (1 − sparsity))``
        entries of largest magnitude; no biases.
    """
    outline = sensitivity.outline
    asked = read_budget(budget, outline)
    layers = _layers(outline.sites)
    scores = [[_checked(sensitivity, site) for site in layer] for layer in layers]
    sizes = [sum(int(view.count_nonzero()) for view in views) for views in scores]
    check_maximum(asked, outline.always_trained_params + sum(sizes), "the linear layers")
    sparse: dict[str, torch.Tensor] = {}
    for layer, views, count in zip(layers, scores, _shares(sizes, asked - outline.always_trained_params), strict=True):
        if count:
            found = indices_above(views, find_cut(views, count))
            sparse |= {site.id: torch.from_numpy(one) for site, (one, _) in zip(layer, found, strict=True) if one.size}
    return sparse_allocation(sensitivity, sparse, budget=asked, rule="layerwise")


def check_layerwise_budget(outline: ModelOutline, budget: int | str) -> None:
    """Refuse what `layerwise_allocation` would refuse even if every score were above zero.

    Args:
        outline: The model.
        budget: As in `allocate`, one only.

    Raises:
        BudgetError: If the budget is below what is always trained, above what can be used, or cannot be read.
    """
    layers = sum(site.numel for site in outline.sites if site.kind == "matrix")
    check_maximum(read_budget(budget, outline), outline.always_trained_params + layers, "the linear layers")


def _layers(sites: Sequence[Site]) -> list[list[Site]]:
    """The matrix sites by the parameter that stores them."""
    layers: dict[str, list[Site]] = {}
    for site in sites:
        if site.kind == "matrix":
            layers.setdefault(site.parameter, []).append(site)
    return list(layers.values())


def _checked(sensitivity: Sensitivity, site: Site) -> torch.Tensor:
    view = sensitivity.score_of(site)
    check_scores(site, view)
    return view


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to the sizes (Hamilton's method of largest remainders)."""
    whole = max(sum(sizes), 1)
    shares = [size * total // whole for size in sizes]
    remainders = np.array([size * total % whole for size in sizes])
    for number in np.argsort(-remainders, kind="stable")[: total - sum(shares)]:
        shares[number] += 1
    return shares
