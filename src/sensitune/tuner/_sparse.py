"""The portable sparse correction: for half precision, autocast and compiled graphs, where W must not be written.

The same map and the same exact gradients as `sensitune.tuner._fused`, from the same `SparsePattern`: the box of used
rows × used columns is applied beside W, or, where the box would cover most of the matrix, ``W + S`` is formed, used,
and formed again in backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from sensitune.tuner._pattern import SparsePattern


def sparse_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, values: torch.Tensor, pattern: SparsePattern
) -> torch.Tensor:
    """``x (W + S)ᵀ + b`` for a frozen W, differentiable in `x`, `bias` and `values`.

    Args:
        x: Input ``[..., in]``.
        weight: Frozen matrix ``[out, in]``; may be a transposed view.
        bias: ``[out]`` or None.
        values: One value per position of the pattern ``[n]``.
        pattern: Where they sit.

    Returns:
        Output ``[..., out]``, in the autocast dtype where autocast is on.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    whole = pattern.used_columns is None
    where = (
        None if whole else pattern.used_rows,
        pattern.used_columns,
        pattern.matrix_position if whole else pattern.position,
    )
    result: torch.Tensor = _SparseLinear.apply(x, weight, bias, values, *where)
    return result


class _SparseLinear(torch.autograd.Function):
    """The product above; keeps ``x[..., columns]`` (or x, when the whole matrix is formed) and W by reference."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        values: torch.Tensor,
        rows: torch.Tensor | None,
        columns: torch.Tensor | None,
        position: torch.Tensor,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        matrix = weight.to(x.dtype)
        offset = None if bias is None else bias.to(x.dtype)
        if columns is None:
            kept = flat
            y = F.linear(x, _corrected(matrix, values, position), offset)
        else:
            kept = flat.index_select(1, columns)
            y = F.linear(x, matrix, offset)
            _add_columns(y.view(-1, y.shape[-1]), rows, kept, _box(values, position, matrix, rows, columns))
        ctx.save_for_backward(kept, weight, values, rows, columns, position)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.shape = x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept, weight, values, rows, columns, position = ctx.saved_tensors
        needs_x, _, needs_bias, needs_values = ctx.needs_input_grad[:4]
        flat = grad.reshape(-1, grad.shape[-1])
        matrix = weight.to(grad.dtype)
        used = flat if rows is None else flat.index_select(1, rows)
        grad_x = None
        if needs_x:
            if columns is None:
                grad_x = flat @ _corrected(matrix, values, position)
            else:
                grad_x = flat @ matrix
                grad_x.index_add_(1, columns, used @ _box(values, position, matrix, rows, columns))
            grad_x = grad_x.view(ctx.shape)
        grad_values = (used.t() @ kept).flatten()[position].to(values.dtype) if needs_values else None
        grad_bias = flat.sum(0).to(ctx.bias_dtype) if needs_bias else None
        return grad_x, None, grad_bias, grad_values, None, None, None


def _corrected(matrix: torch.Tensor, values: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """``W + S`` as a new dense matrix ``[out, in]``."""
    dense = matrix.contiguous().flatten().index_add(0, position, values.to(matrix.dtype))
    return dense.view(matrix.shape)


def _box(
    values: torch.Tensor,
    position: torch.Tensor,
    matrix: torch.Tensor,
    rows: torch.Tensor | None,
    columns: torch.Tensor,
) -> torch.Tensor:
    """The used rows × used columns of S as a dense matrix ``[R, C]``; entries that several adapters share add up."""
    height = matrix.shape[0] if rows is None else rows.numel()
    flat = matrix.new_zeros(height * columns.numel())
    return flat.index_add_(0, position, values.to(matrix.dtype)).view(height, columns.numel())


def _add_columns(y: torch.Tensor, rows: torch.Tensor | None, kept: torch.Tensor, box: torch.Tensor) -> None:
    """``y[:, rows] += kept @ boxᵀ``, in place: y is fresh and nobody has saved it."""
    if rows is None:
        y.addmm_(kept, box.t())
    else:
        y.index_add_(1, rows, kept @ box.t())


class _AddSlices(torch.autograd.Function):
    """Add tensors into column ranges of a fresh output, in place; their gradients are views of its gradient."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, starts: tuple[int, ...], *parts: torch.Tensor) -> torch.Tensor:
        for start, part in zip(starts, parts, strict=True):
            y.narrow(-1, start, part.shape[-1]).add_(part)
        ctx.mark_dirty(y)
        ctx.ranges = [(start, part.shape[-1], part.dtype) for start, part in zip(starts, parts, strict=True)]
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (grad, None, *(grad.narrow(-1, start, size).to(dtype) for start, size, dtype in ctx.ranges))


def add_slices(y: torch.Tensor, parts: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """``y[..., start : start + n] += part`` for every ``(start, part)``, without copying the rest of y.

    Args:
        y: A fresh output ``[..., out]`` that no operation has saved for backward.
        parts: Start column and tensor ``[..., n]`` of each addend.

    Returns:
        The sum; y itself, changed in place, outside a compiled graph.
    """
    if torch.compiler.is_compiling():  # the compiler functionalises better what was never in place
        for start, part in parts:
            y = y + F.pad(part, (start, y.shape[-1] - start - part.shape[-1])).to(y.dtype)
        return y
    result: torch.Tensor = _AddSlices.apply(y, tuple(start for start, _ in parts), *(part for _, part in parts))
    return result
