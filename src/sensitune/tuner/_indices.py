"""Where an adapter's sparse entries sit, as a part of the model that is saved with the adapter."""

from __future__ import annotations

import torch
from torch import nn


class SiteIndices(nn.Module):
    """The flat indices of one adapter's sparse entries in one layer, saved with the adapter, one buffer per site."""

    def set(self, slot: str, indices: torch.Tensor) -> None:
        """Store a site's indices, sorted int64 ``[n]``, as int32 (no site comes near 2³¹ scalars)."""
        self.register_buffer(slot, indices.to(torch.int32), persistent=True)

    def get(self, slot: str) -> torch.Tensor:
        """A site's flat indices, int64 ``[n]``."""
        return self._buffers[slot].long()  # type: ignore[union-attr]  # `set` never stores None

    def forward(self) -> None:
        """Not a layer; it only holds buffers."""
        raise NotImplementedError("SiteIndices holds buffers and is never called.")


def random_indices(numel: int, size: int) -> torch.Tensor:
    """`size` distinct flat indices below `numel`, sorted, drawn from torch's global generator."""
    return torch.randperm(numel)[:size].sort().values
