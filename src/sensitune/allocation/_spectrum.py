"""The leading directions of a matrix site's accumulated gradient."""

from __future__ import annotations

import torch

from sensitune.errors import NonFiniteError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import Site


def finite_gradient(sensitivity: Sensitivity, site: Site) -> torch.Tensor:
    """The accumulated gradient of a site, checked.

    Args:
        sensitivity: Estimated with ``keep_gradients=True``.
        site: One of its sites.

    Returns:
        Σ over batches of the gradient of the mean loss, of the site's shape.

    Raises:
        ArgumentError: If the sensitivity holds no gradients.
        NonFiniteError: If a gradient is not finite.
    """
    gradient = sensitivity.gradient_of(site)
    if not torch.isfinite(gradient).all():
        raise NonFiniteError(f"A gradient of `{site.id}` is not a finite number. Estimate the sensitivity again.")
    return gradient


def as_matrix(site: Site, tensor: torch.Tensor) -> torch.Tensor:
    """A matrix site's tensor as ``[out, in]``, however it is stored."""
    return tensor.t() if site.transposed else tensor.flatten(1)


def leading_directions(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The right singular vectors of the largest singular values, as orthonormal rows.

    Args:
        matrix: ``[out, in]``.
        rank: How many, at most `in`. Beyond the matrix's own directions the rows complete an orthonormal basis.

    Returns:
        ``[rank, in]``, in the matrix's type.
    """
    directions: torch.Tensor = torch.linalg.svd(matrix, full_matrices=rank > min(matrix.shape)).Vh
    return directions[:rank].clone()
