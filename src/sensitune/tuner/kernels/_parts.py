"""What is added to a frozen linear layer, as values that both implementations take."""

from __future__ import annotations

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
