"""Where the down projection of each LoRA starts: along the gradient."""

from __future__ import annotations

import math

import torch

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._spectrum import as_matrix, finite_gradient, leading_directions
from sensitune.errors import AllocationMismatchError, ArgumentError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import Site


def compute_lora_start(sensitivity: Sensitivity, allocation: Allocation) -> dict[str, torch.Tensor]:
    """Down projections that read what the loss falls along: leading right singular vectors of the gradient.

    While ``up`` is zero, one step of gradient descent with rate η changes the weight by ``−η·G·DᵀD``. Of all D with k
    orthonormal rows, the k leading right singular vectors of G keep most of G. Each row here has norm 1/√3, so that
    ``‖D‖² = k / 3``, which is what Kaiming-uniform values (variance 1 / (3·in)) have on average: only the direction
    differs from the usual start, and the best learning rate should stay where it is. ``up`` stays zero, so the tuned
    model still starts as the base.

    `sensitune.apply_lora_start` sets them.

    Args:
        sensitivity: Estimated with ``keep_gradients=True``.
        allocation: Says which sites have a LoRA, and of which rank.

    Returns:
        Id of each structured site -> ``[rank, in]``, float32 or the gradient's type.

    Raises:
        AllocationMismatchError: If the allocation was made for another model.
        ArgumentError: If the modules are Adapters, a rank exceeds the site's input features, or the sensitivity holds
            no gradients.
        NonFiniteError: If a gradient is not finite.

    Source:
        Wang, Yu and Li, *LoRA-GA: Low-Rank Adaptation with Gradient Approximation*, 2024 (arXiv 2407.05000), who also
        start ``up`` from the gradient and take its change out of the base weight; we do not.
    """
    if allocation.structured_type == "adapter":
        raise ArgumentError(
            "Only a LoRA can start along the gradient of its weight; the allocation places Adapters. "
            'Allocate with `structured="lora"`.'
        )
    return {name: _directions(sensitivity, allocation.site(name), rank) for name, rank in allocation.structured.items()}


def _directions(sensitivity: Sensitivity, site: Site, rank: int) -> torch.Tensor:
    scored = any(site.parameter == one.parameter for one in sensitivity.sites)
    if not (scored and site.fits(sensitivity.scores[site.parameter])):
        raise AllocationMismatchError(
            f"The allocation was made for another model: the sensitivity has no site `{site.id}` of shape "
            f"{list(site.shape)}. Estimate the sensitivity of the model that the allocation was made for."
        )
    if rank > site.in_features:
        raise ArgumentError(
            f"The LoRA on `{site.id}` has rank {rank}, but there are only {site.in_features} directions in its input. "
            "Lower the rank."
        )
    return leading_directions(as_matrix(site, finite_gradient(sensitivity, site)), rank) / math.sqrt(3)
