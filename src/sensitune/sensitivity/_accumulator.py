"""Scores that grow while a backward pass runs.

Each gradient is folded into its score and freed the moment autograd has finished it, so that no full gradient of the
model ever exists: the peak is one score per parameter, the largest gradient, and the activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from sensitune.errors import ModelError, NonFiniteError
from sensitune.sensitivity._criteria import GradientCriterion

# Scalars that a criterion sees at once: bounds its temporaries. On a processor they then stay in its cache, which makes
# the whole three times as fast; elsewhere each chunk costs the start of a few kernels.
_CHUNK = 1 << 18
_DEVICE_CHUNK = 1 << 22


class Accumulator:
    """The scores of some parameters over the batches of a pass.

    Attributes:
        scores: Parameter name -> score so far.
        seen: Names of the parameters that had a gradient in at least one batch.
        complete: Set before a backward pass: False while the gradients of a batch are still being added up over its
            micro-batches, True for the last of them.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        criterion: GradientCriterion,
        score_dtype: torch.dtype,
        score_device: torch.device | None = None,
    ) -> None:
        self.scores = {
            name: torch.zeros(parameter.shape, dtype=score_dtype, device=score_device or parameter.device)
            for name, parameter in parameters.items()
        }
        self.seen: set[str] = set()
        self.complete = True
        self._parameters = parameters
        self._criterion = criterion
        self._sums: dict[str, torch.Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Ask for the parameters' gradients and watch them arrive."""
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        handles = [
            parameter.register_post_accumulate_grad_hook(partial(self._on_gradient, name))
            for name, parameter in self._parameters.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finish_batch(self, index: int) -> None:
        """Fold what the last micro-batch did not reach, and check the batch.

        Args:
            index: Number of the batch, for the message.

        Raises:
            NonFiniteError: If a contribution of the batch is not finite.
        """
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self._fold(name, parameter)
        _check_finite(self._sums, index)
        self.seen |= self._sums.keys()
        self._sums = {}

    def _on_gradient(self, name: str, parameter: torch.Tensor) -> None:
        if self.complete:
            self._fold(name, parameter)

    def _fold(self, name: str, parameter: torch.Tensor) -> None:
        if name in self._sums:
            raise ModelError(
                f"The gradient of `{name}` arrives in several pieces. If the model checkpoints its activations, "
                "use `use_reentrant=False`."
            )
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        self._sums[name] = add_contribution(self.scores[name], parameter.detach(), gradient, self._criterion)


@torch.no_grad()
def add_contribution(
    score: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor, criterion: GradientCriterion
) -> torch.Tensor:
    """Add a criterion's contribution to a score, in float32 or better, a chunk at a time.

    Args:
        score: Contiguous, on any device; changed in place.
        weight: Of the score's shape.
        gradient: Of the score's shape.
        criterion: The contribution of a weight and its gradient.

    Returns:
        The sum of the contribution, a scalar on the gradient's device: finite only if every entry is.
    """
    precision = torch.promote_types(gradient.dtype, torch.float32)
    total = torch.zeros((), dtype=precision, device=gradient.device)
    size = _CHUNK if gradient.device.type == "cpu" else _DEVICE_CHUNK
    chunks = (tensor.reshape(-1).split(size) for tensor in (score, weight, gradient))
    for part, weights, gradients in zip(*chunks, strict=True):
        contribution = criterion(weights.to(precision), gradients.to(precision))
        part.add_(contribution.to(part.device))
        total += contribution.sum()
    return total


def _check_finite(sums: Mapping[str, torch.Tensor], index: int) -> None:
    """One transfer from the device for all parameters, and a search for the culprit only if there is one."""
    if not sums:
        return
    home = next(iter(sums.values())).device
    finite = torch.isfinite(torch.stack([total.to(home) for total in sums.values()])).tolist()
    for name, good in zip(sums, finite, strict=True):
        if not good:
            raise NonFiniteError(
                f"Batch {index} (the first is 0) gives `{name}` a score that is not a finite number. "
                "Look at the batch's inputs, or run the model in float32."
            )
