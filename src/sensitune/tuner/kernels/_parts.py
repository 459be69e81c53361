"""A tuned linear layer as the value that both implementations take: what is frozen, and what is added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sensitune.tuner.kernels._pattern import SparsePattern


@dataclass(frozen=True, eq=False)
class SparseValues:
    """A sparse correction S of a layer's weight.

    Attributes:
        pattern: Where the entries sit.
        values: One value per position of the pattern ``[n]``.
    """

    pattern: SparsePattern
    values: torch.Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """The LoRA slices of one adapter in one layer; they read one input, with one dropout mask.

    Attributes:
        starts: First output feature of each slice.
        downs: ``[rank, in]`` each.
        ups: ``[slice, rank]`` each.
        dropout: Probability with which an element of the input is dropped; 0 outside training.
        drop_path: Probability with which a sample's whole output of the slices is dropped; 0 outside training.
    """

    starts: tuple[int, ...]
    downs: tuple[torch.Tensor, ...]
    ups: tuple[torch.Tensor, ...]
    dropout: float = 0.0
    drop_path: float = 0.0

    @property
    def stacked_downs(self) -> torch.Tensor:
        """All down projections under one another ``[Σ rank, in]``: one product instead of one per slice."""
        return torch.cat(self.downs) if len(self.downs) > 1 else self.downs[0]

    @property
    def ranks(self) -> list[int]:
        """Rank of each slice."""
        return [down.shape[0] for down in self.downs]


@dataclass(frozen=True, eq=False)
class LinearParts:
    """Everything a tuned linear layer computes with.

    Attributes:
        weight: The frozen weight as stored: ``[out, in]``, or ``[in, out]`` when `transposed`.
        bias: ``[out]`` or None.
        transposed: How the weight is stored.
        sparse: The sparse correction, if there is one.
        low_rank: The LoRA slices, one element for each adapter that has any.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    transposed: bool = False
    sparse: SparseValues | None = None
    low_rank: Sequence[LowRank] = ()
