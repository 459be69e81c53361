"""Sums that grow while a backward pass runs.

Each gradient is folded into its sums and freed the moment autograd has finished it, so that no full gradient of the
model ever exists: the peak is the criterion's sums (on disk, if the store is), the largest gradient, and the
activations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from sensitune.errors import ModelError, NonFiniteError
from sensitune.sensitivity._criteria import GradientCriterion, Term, plain_gradient
from sensitune.sensitivity._store import MemoryStore, Store
from sensitune.sensitivity._taps import all_attached, find_taps
from sensitune.sensitivity._weights import Weight

# Scalars that a criterion sees at once: bounds its temporaries. On a processor they then stay in its cache, which makes
# the whole three times as fast; elsewhere each chunk costs the start of a few kernels.
_CHUNK = 1 << 18
_DEVICE_CHUNK = 1 << 22


class Accumulator:
    """What a criterion adds up over the batches of a pass, for some parameters.

    Args:
        model: The model.
        weights: What to score, by parameter name.
        criterion: What is added up.
        score_dtype: Type of the sums.
        store: Where they are; None = in memory, each beside its parameter.
        by_layer: Whether no linear layer's weight requires a gradient: it is made of the layer's input and that of its
            output. So it always is where a weight cannot require one.
        keep_gradients: See `estimate_sensitivity`.
        keep_halves: See `estimate_sensitivity`.

    Attributes:
        sums: Parameter name -> sum so far: the criterion's; then the gradients', if they are kept; then the
            criterion's over every second batch, if the halves are kept.
        seen: Names of the parameters that had a gradient in at least one batch.
        complete: Set before a backward pass: False while the gradients of a batch are still being added up over its
            micro-batches, True for the last of them.
        second: Set before a batch: True for every second one.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, Weight],
        criterion: GradientCriterion,
        score_dtype: torch.dtype,
        store: Store | None = None,
        *,
        by_layer: bool = False,
        keep_gradients: bool = False,
        keep_halves: bool = False,
    ) -> None:
        dtypes = [score_dtype] + [torch.float32] * keep_gradients + [score_dtype] * keep_halves
        self._store = store or MemoryStore()
        self.sums = [
            {name: self._store.zeros(weight.shape, dtype, weight.device) for name, weight in weights.items()}
            for dtype in dtypes
        ]
        self.seen: set[str] = set()
        self.complete = True
        self.second = False
        self._weights = weights
        self._taps = find_taps(model, weights, by_layer=by_layer)
        tapped = {name for tap in self._taps for name in tap.names.values()}
        self._parameters = {name: weight.parameter for name, weight in weights.items() if name not in tapped}
        # Of tapped parameters: calls whose part of the gradient is awaited, and the sum of the parts that are there.
        self._awaited: Counter[str] = Counter()
        self._parts: dict[str, torch.Tensor] = {}
        self._backward = False
        self._criterion = criterion
        self._terms = [criterion.term] + [plain_gradient] * keep_gradients
        self._totals: dict[str, torch.Tensor] = {}

    def scores(self) -> dict[str, torch.Tensor]:
        """Parameter name -> score on the CPU, once the sums are complete. Uses up the criterion's sums."""
        return {name: self._criterion.finish(total).cpu() for name, total in self.sums[0].items()}

    def halves(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None:
        """The scores of the first, third, ... batch and of the others on the CPU in bfloat16, if they are kept.

        The first is what the second leaves of the whole; the second's sums are used up.

        Returns:
            Parameter name -> score, twice; to be asked before `scores`.
        """
        if len(self.sums) == len(self._terms):
            return None
        whole, second = self.sums[0], self.sums[-1]
        first = {name: total - second[name] for name, total in whole.items()}
        finish = self._criterion.finish
        one, other = (
            {name: finish(total).clamp_(min=0).to("cpu", torch.bfloat16) for name, total in half.items()}
            for half in (first, second)
        )
        return one, other

    def gradients(self) -> dict[str, torch.Tensor] | None:
        """Parameter name -> sum of the gradients on the CPU in float32, if they are kept."""
        if len(self._terms) == 1:
            return None
        return {name: total.cpu() for name, total in self.sums[1].items()}

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
            with all_attached(self._taps, self._on_call, self._on_part):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def start_piece(self, *, complete: bool) -> None:
        """To be called before the forward of every micro-batch.

        Args:
            complete: Whether it is the batch's last.
        """
        self.complete = complete
        self._awaited.clear()

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Inside, backward runs, and what is called is computed again (activation checkpointing)."""
        self._backward = True
        try:
            yield
        finally:
            self._backward = False

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
        for name in list(self._parts):  # calls whose output had no part in the loss never bring theirs
            self._add(name, self._parts.pop(name))
        _check_finite(self._totals, index)
        self.seen |= self._totals.keys()
        self._totals = {}

    def _on_gradient(self, name: str, parameter: torch.Tensor) -> None:
        if self.complete:
            self._fold(name, parameter)

    def _fold(self, name: str, parameter: torch.Tensor) -> None:
        arrived, parameter.grad = parameter.grad, None
        assert arrived is not None
        self._add(name, arrived)

    def _on_call(self, name: str) -> None:
        self._awaited[name] += not self._backward

    @torch.no_grad()
    def _on_part(self, name: str, gradient: torch.Tensor) -> None:
        """One call's part of a gradient; a layer that is called several times has several."""
        self._awaited[name] -= 1
        last = self.complete and self._awaited[name] <= 0
        if name in self._parts:
            self._parts[name].add_(gradient.to(self._parts[name].device))
        elif not last:
            wide = torch.promote_types(gradient.dtype, torch.float32)
            self._parts[name] = self._store.zeros(gradient.shape, wide, gradient.device)
            self._parts[name].copy_(gradient)
        if last:
            self._add(name, self._parts.pop(name, gradient))

    def _add(self, name: str, gradient: torch.Tensor) -> None:
        if name in self._totals:
            raise ModelError(
                f"The gradient of `{name}` arrives in several pieces. If the model checkpoints its activations, "
                "use `use_reentrant=False`."
            )
        # The halves' sum comes last, and only every second batch is added to it.
        terms = self._terms + [self._criterion.term] * (self.second and len(self.sums) > len(self._terms))
        sums = [total[name] for total in self.sums[: len(terms)]]
        weight = self._weights[name].value().to(gradient.device) if self._criterion.reads_weight else gradient
        self._totals[name] = add_contributions(sums, weight, gradient, terms)


@torch.no_grad()
def add_contributions(
    sums: Sequence[torch.Tensor], weight: torch.Tensor, gradient: torch.Tensor, terms: Sequence[Term]
) -> torch.Tensor:
    """Add each term's contribution to its sum, in float32 or better, a chunk at a time.

    Args:
        sums: One per term, contiguous, on any device; changed in place.
        weight: Of the sums' shape.
        gradient: Of the sums' shape.
        terms: The contributions of a weight and its gradient.

    Returns:
        The sum of all contributions, a scalar on the gradient's device: finite only if every entry is.
    """
    precision = torch.promote_types(gradient.dtype, torch.float32)
    total = torch.zeros((), dtype=precision, device=gradient.device)
    size = _CHUNK if gradient.device.type == "cpu" else _DEVICE_CHUNK
    chunks = (tensor.reshape(-1).split(size) for tensor in (weight, gradient, *sums))
    for weights, gradients, *parts in zip(*chunks, strict=True):
        weights, gradients = weights.to(precision), gradients.to(precision)
        for part, term in zip(parts, terms, strict=True):
            contribution = term(weights, gradients)
            part.add_(contribution.to(part.device))
            total += contribution.sum()
    return total


def _check_finite(totals: Mapping[str, torch.Tensor], index: int) -> None:
    """One transfer from the device for all parameters, and a search for the culprit only if there is one."""
    if not totals:
        return
    home = next(iter(totals.values())).device
    finite = torch.isfinite(torch.stack([total.to(home) for total in totals.values()])).tolist()
    for name, good in zip(totals, finite, strict=True):
        if not good:
            raise NonFiniteError(
                f"Batch {index} (the first is 0) gives `{name}` a score that is not a finite number. "
                "Look at the batch's inputs, or run the model in float32."
            )
