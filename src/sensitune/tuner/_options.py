"""Settings of an adapter that its layers need while they run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sensitune.tuner.kernels import drop_path


@dataclass(frozen=True)
class ModuleOptions:
    """Dropout, drop-path and how values start.

    Attributes:
        dropout: Probability with which a LoRA's or Adapter's input elements are dropped in training.
        drop_path: Probability with which a sample's whole LoRA or Adapter output is dropped in training.
        init_weights: True starts the adapter as the identity; False draws every value at random.
    """

    dropout: float = 0.0
    drop_path: float = 0.0
    init_weights: bool = True

    def thinned(self, up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A LoRA's factors for one training forward of a layer whose weight they change.

        No sample has an input or an output of its own there: elements of `down` are dropped in place of the input's,
        and the whole change in place of a sample's, once for the batch and right on average.

        Args:
            up: ``[out, rank]``.
            down: ``[rank, in, ...]``.

        Returns:
            Both, thinned out.
        """
        return drop_path(up[None], self.drop_path)[0], F.dropout(down, self.dropout)
