"""One autograd node for a tuned linear layer: frozen weight, sparse entries, low-rank slices and bias together.

What is fused, and why: the sparse values are written into W for the length of one product and taken out again, so that
they cost neither a pass over the output nor a product of their own; the low-rank parts are added into their row ranges
of the output, and into the input's gradient, inside the matrix products' own accumulation. So a step costs little more
than with a frozen layer, and keeps the used input columns only.

Writing into W is safe because W is whole again before anything else runs: the original entries are put back bit for
bit, also when the product fails; a lock keeps other threads out; the version counter, by which autograd tells that a
saved tensor was changed, is not touched. Only plain float32 or float64 weights are treated so: in half precision small
deltas would drown in the rounding of W, and a compiler could not follow. `SptLinear` takes the portable way for those,
and for weights in memory that several processes share, which the lock does not reach.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from sensitune.tuner._pattern import SparsePattern
from sensitune.tuner._source import Source, source_of

_WRITING = threading.Lock()


@dataclass(frozen=True, eq=False)
class LowRank:
    """The LoRA slices of one adapter in one layer.

    Attributes:
        starts: First output feature of each slice.
        downs: ``[rank, in]`` each.
        ups: ``[slice, rank]`` each.
        scale: Drop-path factor per token ``[tokens, 1]``, or None.
    """

    starts: tuple[int, ...]
    downs: tuple[torch.Tensor, ...]
    ups: tuple[torch.Tensor, ...]
    scale: torch.Tensor | None = None


def fused_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    transposed: bool = False,
    pattern: SparsePattern | None = None,
    values: torch.Tensor | None = None,
    low_rank: LowRank | None = None,
) -> torch.Tensor:
    """``x (W + S)ᵀ + b``, plus ``up · down · x`` on each slice; differentiable in everything but W.

    Args:
        x: Input ``[..., in]``, in the weight's dtype.
        weight: The frozen weight as stored: ``[out, in]``, or ``[in, out]`` when `transposed`.
        bias: ``[out]`` or None.
        transposed: How the weight is stored.
        pattern: Where the sparse values sit, if there are any.
        values: The sparse values, one per position of the pattern.
        low_rank: LoRA slices that read `x`, if there are any.

    Returns:
        Output ``[..., out]``.
    """
    factors = () if low_rank is None else (*low_rank.downs, *low_rank.ups)
    scale = None if low_rank is None else low_rank.scale
    starts = () if low_rank is None else low_rank.starts
    recorded = torch.is_grad_enabled()
    recipe = _Recipe(pattern, transposed, starts, recorded, _useful_source(x, bool(factors)) if recorded else None)
    result: torch.Tensor = _FusedLinear.apply(recipe, x, weight, bias, values, scale, *factors)
    return result


def _useful_source(x: torch.Tensor, whole: bool) -> Source | None:
    """Where the input comes from, if computing it again is cheaper than keeping it."""
    # Single columns always are. For the whole input, which low-rank gradients need, a norm costs one cheap pass; a GELU
    # would add some 3 % to the layer's step.
    source = source_of(x)
    return None if source is not None and whole and source.kind == "gelu" else source


@dataclass(frozen=True, eq=False)
class _Recipe:
    pattern: SparsePattern | None
    transposed: bool
    starts: tuple[int, ...]
    recorded: bool
    source: Source | None

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as ``[out, in]``."""
        return weight.t() if self.transposed else weight

    @contextmanager
    def corrected(self, weight: torch.Tensor, values: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """``W + S`` as ``[out, in]``, for the length of the block, in W's own memory."""
        matrix = self.matrix(weight)
        if self.pattern is None or values is None:
            yield matrix
            return
        flat = weight.data.view(-1)  # .data: the write must not count as a new version of W
        with _WRITING:
            before = flat.index_select(0, self.pattern.stored)
            try:
                flat.scatter_(0, self.pattern.stored, before + values.detach())
                yield matrix
            finally:
                flat.scatter_(0, self.pattern.stored, before)


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        recipe: _Recipe,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        values: torch.Tensor | None,
        scale: torch.Tensor | None,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        with recipe.corrected(weight, values) as matrix:
            y = F.linear(x, matrix, bias)
        flat_x = x.reshape(-1, x.shape[-1])
        downs, ups = factors[: len(factors) // 2], factors[len(factors) // 2 :]
        hidden = None
        if downs:
            hidden = _scaled(flat_x @ _stacked(downs).t(), scale)
            for part, piece, up in zip(_slices(y, recipe.starts, ups), _pieces(hidden, downs), ups, strict=True):
                part.addmm_(piece, up.t())
        if recipe.recorded:
            # The low-rank gradients need all of x, kept by reference; columns are copied only where nothing else does.
            kept = flat_x if downs and recipe.source is None else None
            if not downs and recipe.source is None and recipe.pattern is not None and ctx.needs_input_grad[4]:
                kept = recipe.pattern.keep(flat_x)
            source = () if recipe.source is None else recipe.source.tensors
            ctx.save_for_backward(kept, weight, values, scale, hidden, *factors, *source)
            ctx.recipe, ctx.shape, ctx.num_factors = recipe, x.shape, len(factors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, weight, values, scale, hidden, *others = ctx.saved_tensors
        factors, source = others[: ctx.num_factors], tuple(others[ctx.num_factors :])
        recipe: _Recipe = ctx.recipe
        _, needs_x, _, needs_bias, needs_values, _, *needs_factors = ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_values = None
        if needs_x:
            with recipe.corrected(weight, values) as matrix:
                grad_x = flat @ matrix
        if kept is None and factors and recipe.source is not None:
            kept = recipe.source.columns(source, None)
        if needs_values and recipe.pattern is not None:
            grad_values = recipe.pattern.gradient(flat, _columns(recipe, kept, source, whole=bool(factors)))
        grad_factors: list[torch.Tensor | None] = [None] * len(factors)
        if factors:
            half = len(factors) // 2
            downs, ups = factors[:half], factors[half:]
            parts = _slices(flat, recipe.starts, ups)
            grad_hidden = torch.empty_like(hidden)
            for part, piece, up in zip(parts, _pieces(grad_hidden, downs), ups, strict=True):
                torch.mm(part, up, out=piece)
            grad_hidden = _scaled(grad_hidden, scale)
            if any(needs_factors):
                grad_downs = (grad_hidden.t() @ kept).split([down.shape[0] for down in downs])
                pieces = _pieces(hidden, downs)
                grad_ups = [part.t() @ piece for part, piece in zip(parts, pieces, strict=True)]
                grad_factors = [*grad_downs, *grad_ups]
            if grad_x is not None:
                grad_x.addmm_(grad_hidden, _stacked(downs))
        grad_x = None if grad_x is None else grad_x.view(ctx.shape)
        grad_bias = flat.sum(0) if needs_bias else None
        return None, grad_x, None, grad_bias, grad_values, None, *grad_factors


def _columns(
    recipe: _Recipe, kept: torch.Tensor | None, source: tuple[torch.Tensor | None, ...], *, whole: bool
) -> torch.Tensor:
    """The input columns that the pattern's gradient needs, from what was kept."""
    assert recipe.pattern is not None
    if kept is None:
        assert recipe.source is not None
        return recipe.source.columns(source, recipe.pattern.used_columns)
    return recipe.pattern.keep(kept) if whole else kept


def _stacked(downs: Any) -> torch.Tensor:
    """All down projections under one another: one product instead of one per slice."""
    return torch.cat(list(downs)) if len(downs) > 1 else downs[0]


def _pieces(hidden: torch.Tensor, downs: Any) -> tuple[torch.Tensor, ...]:
    """The columns of the stacked hidden features ``[tokens, Σ rank]`` that belong to each slice."""
    pieces: tuple[torch.Tensor, ...] = hidden.split([down.shape[0] for down in downs], 1)
    return pieces


def _slices(y: torch.Tensor, starts: tuple[int, ...], ups: Any) -> list[torch.Tensor]:
    """The column ranges of ``[..., out]`` that belong to each slice, as views ``[tokens, slice]``."""
    flat = y.view(-1, y.shape[-1])
    return [flat.narrow(1, start, up.shape[0]) for start, up in zip(starts, ups, strict=True)]


def _scaled(hidden: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return hidden if scale is None else hidden * scale
