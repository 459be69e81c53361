"""Micro-batches: a batch in pieces whose losses, each with its share, add up to the batch's own.

The share of a piece depends on what the loss is a mean of: labels without the ignored ones, samples, or nothing (a
sum). A model's own loss and `loss_fn` do not say, so the ways there are get compared with the loss itself, on two
pieces of each batch: apart and together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import nn

from sensitune.errors import DataError
from sensitune.sensitivity._batches import IGNORED_LABEL, Batch, batch_size_of, labels_of, map_entries

Rows: TypeAlias = list[int]
"""The samples of a piece, by their place in the batch."""
Way: TypeAlias = torch.Tensor | None
"""What a loss is a mean of: how many terms each sample gives to it, ``[samples]``; None = it is a sum."""

# Of a loss: how far two pieces may miss what they have together, by the model's precision. Beyond rounding, for
# libraries choose other algorithms for other sizes; a loss that couples samples misses by far more.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
_COARSE_TOLERANCE = 3e-2
_CLEARLY_BETTER = 4.0


def cut(batch: Batch, micro_batch_size: int | None) -> list[Rows]:
    """The batch in pieces of at most `micro_batch_size` samples; None or a larger one = in one piece."""
    size = batch_size_of(batch)
    if micro_batch_size is None:
        return [list(range(size or 1))]
    if size is None:
        raise DataError("`micro_batch_size` needs batches that hold tensors. Make the batches smaller instead.")
    return [list(range(start, min(start + micro_batch_size, size))) for start in range(0, size, micro_batch_size)]


def take(batch: Batch, rows: Rows) -> Batch:
    """Some samples of a batch: of tensors and lists that run over all samples; everything else stays whole."""
    size = batch_size_of(batch)

    def taken(value: Batch, *, is_batch: bool = False) -> Batch:
        if isinstance(value, torch.Tensor):
            return value[rows] if value.dim() and value.shape[0] == size else value
        if isinstance(value, list) and not is_batch and len(value) == size:
            return [value[row] for row in rows]
        return map_entries(value, taken)

    return taken(batch, is_batch=True)


def ways_to_count(model: nn.Module, batch: Batch) -> list[Way]:
    """What the loss of a batch may be a mean of, the likeliest first."""
    samples = torch.ones(batch_size_of(batch) or 1)
    labels = labels_of(batch)
    if labels is None or not labels.dim():
        return [samples, None]
    if not labels.numel():
        return [torch.zeros(1)]
    if labels.is_floating_point():
        return [samples, _per_sample(~labels.isnan()), None]
    ignored = (IGNORED_LABEL, getattr(getattr(model, "config", None), "semantic_loss_ignore_index", IGNORED_LABEL))
    forms = [labels, labels[..., 1:]] if labels.dim() == 2 and labels.shape[1] > 1 else [labels]
    if _predicts_next_token(model):  # then the first token is never predicted
        forms.reverse()
    usual = [_per_sample((form != ignored[0]) & (form != ignored[1])) for form in forms]
    # Another index that is ignored, such as 255 or -1, is nearly always the smallest or the largest of the labels.
    others = [_per_sample(kept) for form in forms for kept in (form != labels.max(), form != labels.min(), form >= 0)]
    return [*usual, samples, *others, None]


def shares(way: Way, pieces: Sequence[Rows]) -> list[float]:
    """What each piece's loss counts in that of all of them; 0 for a piece that gives no term to it."""
    if way is None:
        return [1.0] * len(pieces)
    counts = [float(way[rows].sum()) for rows in pieces]
    return [count / max(sum(counts), 1.0) for count in counts]


def find_way(
    ways: Sequence[Way], pieces: Sequence[Rows], loss_of: Callable[[Rows], torch.Tensor], dtype: torch.dtype
) -> Way:
    """The way of counting that the loss itself follows.

    Args:
        ways: From `ways_to_count`.
        pieces: From `cut`, at least two.
        loss_of: The loss of some samples of the batch, a scalar.
        dtype: The model's.

    Returns:
        The first way, unless another is clearly nearer.

    Raises:
        DataError: If none fits: the loss couples samples.
    """
    left = list(ways)
    while True:
        first, second = pair = _telling(left, pieces)
        losses = [loss_of(rows) for rows in (*pair, first + second)]
        dtype = max(dtype, losses[-1].dtype, key=lambda each: torch.finfo(each).eps)
        *apart, together = [loss.item() for loss in losses]
        gaps = [_gap(shares(way, pair), apart, together) for way in left]
        scale = max(map(abs, [together, *filter(math.isfinite, apart)]))
        if min(gaps) > _TOLERANCE.get(dtype, _COARSE_TOLERANCE) * scale:
            raise DataError(
                f"The loss of a batch is not made up of the losses of its micro-batches: it is {together:.6g} for "
                f"samples {first[0]} to {first[-1]} and {second[0]} to {second[-1]} together, {apart[0]:.6g} and "
                f"{apart[1]:.6g} apart. So it compares samples with one another, weighs them, or draws random numbers. "
                "Leave out `micro_batch_size` and make the batches smaller, or give a `loss_fn` that is a mean over "
                "samples or labels."
            )
        near = max(_CLEARLY_BETTER * min(gaps), 32 * torch.finfo(dtype).eps * scale)
        fitting = [way for way, gap in zip(left, gaps, strict=True) if gap <= near]
        if len(fitting) == len(left) or len({tuple(shares(way, pieces)) for way in fitting}) == 1:
            return fitting[0]
        left = fitting


def _telling(ways: Sequence[Way], pieces: Sequence[Rows]) -> tuple[Rows, Rows]:
    """The two pieces between which the ways of counting differ most."""
    counts = torch.stack([torch.stack([way[rows].sum() for rows in pieces]) for way in ways if way is not None])
    parts = counts[:, :, None] / (counts[:, :, None] + counts[:, None, :])
    spread = (parts.nan_to_num(0.5).amax(0) - parts.nan_to_num(0.5).amin(0)).tolist()
    pairs = itertools.combinations(range(len(pieces)), 2)
    first, second = max(pairs, key=lambda pair: spread[pair[0]][pair[1]])  # the first two if they never differ
    return pieces[first], pieces[second]


def _gap(parts: Sequence[float], apart: Sequence[float], together: float) -> float:
    """How far the losses apart, each with its share, miss the loss together."""
    if not any(parts):
        return math.inf
    missed = abs(sum(part * loss for part, loss in zip(parts, apart, strict=True) if part) - together)
    return missed if math.isfinite(missed) else math.inf


def _per_sample(counted: torch.Tensor) -> torch.Tensor:
    return counted.reshape(len(counted), -1).sum(dim=1).float().cpu()


def _predicts_next_token(model: nn.Module) -> bool:
    """Whether a transformers model shifts its labels by one, as decoders do."""
    loss = getattr(model, "loss_function", None)
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return getattr(loss, "__name__", "") == "ForCausalLMLoss" and not encoder_decoder
