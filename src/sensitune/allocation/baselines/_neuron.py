"""The best inputs of every output neuron."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import check_maximum, read_budget
from sensitune.allocation._cut import flat_array
from sensitune.allocation._problem import check_scores
from sensitune.allocation._spectrum import as_matrix
from sensitune.allocation.baselines._sparse import sparse_allocation
from sensitune.errors import BudgetError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline, Site


def neuron_allocation(sensitivity: Sensitivity, *, budget: int | str) -> Allocation:
    """The K inputs of highest score of every output neuron of every linear layer, the same K for all.

    K is the largest that the budget pays for; what is left goes to the neurons whose next-best input scores highest, so
    that the cost is the budget exactly. A neuron with fewer than K inputs has all of them.

    Args:
        sensitivity: The scores; the published rule ranks by the size of the gradient, so a criterion that grows with
            it. A neuron gets its K inputs whatever their scores, ties by lower index.
        budget: As in `allocate`, one only.

    Returns:
        A purely sparse allocation with ``rule="neuron"``; the metadata says K as ``inputs_per_neuron``.

    Raises:
        BudgetError: If the budget does not pay for one input of every neuron, is above what can be used, or cannot be
            read.
        ArgumentError: If a score is negative.
        NonFiniteError: If a score is not finite.

    Source:
        Zhang et al., *Gradient-based Parameter Selection for Efficient Fine-Tuning*, CVPR 2024 (arXiv 2312.10136),
        section 3.2. The published code also selects in convolutions and takes the gradient of a contrastive loss.
    """
    outline = sensitivity.outline
    asked = read_budget(budget, outline)
    matrices = _matrices(outline)
    params = asked - outline.always_trained_params
    inputs = _inputs_per_neuron(outline, matrices, params)
    left = params - _cost(matrices, inputs)
    ranked = [_ranked(sensitivity, site, inputs + 1) for site in matrices]
    further = _further(ranked, inputs, left)
    sparse = {
        site.id: _flat(site, order, inputs, more)
        for site, (order, _), more in zip(matrices, ranked, further, strict=True)
    }
    return sparse_allocation(sensitivity, sparse, budget=asked, rule="neuron", inputs_per_neuron=inputs)


def check_neuron_budget(outline: ModelOutline, budget: int | str) -> None:
    """Refuse what `neuron_allocation` would refuse whatever the scores.

    Args:
        outline: The model.
        budget: As in `allocate`, one only.

    Raises:
        BudgetError: As there.
    """
    _inputs_per_neuron(outline, _matrices(outline), read_budget(budget, outline) - outline.always_trained_params)


def _matrices(outline: ModelOutline) -> list[Site]:
    return [site for site in outline.sites if site.kind == "matrix"]


def _cost(matrices: Sequence[Site], inputs: int) -> int:
    return sum(site.out_features * min(inputs, site.in_features) for site in matrices)


def _inputs_per_neuron(outline: ModelOutline, matrices: Sequence[Site], params: int) -> int:
    """The largest K whose cost is within `params`."""
    neurons = sum(site.out_features for site in matrices)
    always = outline.always_trained_params
    if params < neurons or not neurons:
        raise BudgetError(
            f"`budget` must pay for one input of each of the {neurons:,} output neurons: {neurons + always:,} "
            f"parameters with those always trained. Got {params + always:,}."
        )
    check_maximum(params + always, sum(site.numel for site in matrices) + always, "the linear layers")
    widths = range(max(site.in_features for site in matrices) + 1)
    return bisect_right(widths, params, key=lambda inputs: _cost(matrices, inputs)) - 1


def _ranked(sensitivity: Sensitivity, site: Site, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of highest score per neuron ``[out, count or in]``, ties by lower index, and their scores."""
    view = sensitivity.score_of(site)
    check_scores(site, view)
    scores, order = as_matrix(site, view).sort(dim=1, descending=True, stable=True)
    return order[:, :count].clone(), scores[:, :count].clone()


def _further(ranked: Sequence[tuple[torch.Tensor, torch.Tensor]], inputs: int, left: int) -> list[torch.Tensor]:
    """Which neurons of each matrix get one input more, int64: the `left` of highest next-best score."""
    nexts = [flat_array(scores[:, inputs:]) for _, scores in ranked]
    best = np.argsort(-np.concatenate(nexts), kind="stable")[:left]
    chosen = np.zeros(sum(one.size for one in nexts), dtype=bool)
    chosen[best] = True
    ends = np.cumsum([one.size for one in nexts])
    return [torch.from_numpy(np.flatnonzero(part)) for part in np.split(chosen, ends[:-1])]


def _flat(site: Site, order: torch.Tensor, inputs: int, further: torch.Tensor) -> torch.Tensor:
    """Sorted flat indices, as the site is stored, of each neuron's first inputs and the further ones."""
    width = min(inputs, site.in_features)
    neuron = torch.arange(site.out_features).repeat_interleave(width)
    neurons = torch.cat([neuron, further])
    chosen = torch.cat([order[:, :width].flatten(), order[further, inputs] if further.numel() else order.new_empty(0)])
    flat = chosen * site.out_features + neurons if site.transposed else neurons * site.in_features + chosen
    return flat.sort().values
