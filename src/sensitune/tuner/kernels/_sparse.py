"""A frozen linear layer with sparse trained values, as one node of the autograd graph.

``y = x (W + S)ᵀ + b`` without writing into W: the product with S is added beside W's, or W + S lives in a copy for the
length of one product, whichever touches less memory. Kept for backward are W by reference and, of the input, only the
columns that the values' gradients need; not even those where a LayerNorm or a GELU keeps what they can be computed from
(`sensitune.tuner.kernels._source`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from sensitune.tuner.kernels._parts import SparseValues
from sensitune.tuner.kernels._pattern import SparsePattern
from sensitune.tuner.kernels._source import Source, Tensors, source_of


def sparse_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparse: SparseValues, *, transposed: bool = False
) -> torch.Tensor:
    """``x (W + S)ᵀ + b`` for a frozen W; differentiable, twice too, in everything else.

    Args:
        x: Input ``[..., in]``.
        weight: W as stored.
        bias: ``[out]`` or None.
        sparse: S.
        transposed: Whether the weight is stored ``[in, out]``.

    Returns:
        Output ``[..., out]`` in the dtype of `x`.
    """
    found = source_of(x) if torch.is_grad_enabled() else None
    source, origins = found or (None, ())
    # Gathered outside the node, so that second derivatives find the way from these columns to x.
    columns = sparse.pattern.keep(x) if found is None and torch.is_grad_enabled() else None
    layer = _Layer(sparse.pattern, transposed, source)
    result: torch.Tensor = _SparseLinear.apply(layer, x, weight, bias, sparse.values, columns, *origins)
    return result


@dataclass(frozen=True, eq=False)
class _Layer:
    """What the node knows of its layer beside tensors."""

    pattern: SparsePattern
    transposed: bool
    source: Source | None

    def matrix(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A weight as stored, as ``[out, in]``."""
        return (weight.t() if self.transposed else weight).to(dtype)

    def product(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, values: torch.Tensor
    ) -> torch.Tensor:
        """``x (W + S)ᵀ + b`` for ``x [..., in]``."""
        bias = None if bias is None else bias.to(x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        if not self.pattern.beside_is_cheaper(flat):
            return F.linear(x, self.matrix(self.pattern.corrected(weight, values), x.dtype), bias)
        y = F.linear(x, self.matrix(weight, x.dtype), bias)
        self.pattern.add_product(y.view(-1, y.shape[-1]), flat, values)
        return y

    def transposed_product(self, grad: torch.Tensor, weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """``grad (W + S)`` for ``grad [tokens, out]``."""
        if not self.pattern.beside_is_cheaper(grad):
            return grad @ self.matrix(self.pattern.corrected(weight, values), grad.dtype)
        grad_x = grad @ self.matrix(weight, grad.dtype)
        self.pattern.add_transposed_product(grad_x, grad, values)
        return grad_x

    def kept_columns(self, columns: torch.Tensor | None, origins: Tensors) -> torch.Tensor:
        """The input columns that the values' gradients need ``[tokens, C]``, kept or computed again."""
        if self.source is not None:
            return self.source.columns(origins, self.pattern.used_columns)
        assert columns is not None
        return columns.reshape(-1, columns.shape[-1])


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layer: _Layer,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        values: torch.Tensor,
        columns: torch.Tensor | None,
        *origins: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, values, columns, *origins)
        ctx.layer, ctx.shape, ctx.bias_dtype = layer, x.shape, None if bias is None else bias.dtype
        # A linear product may return a view, into which torch 2.6 lets nobody write who comes after a node.
        return layer.product(x, weight, bias, values).detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layer: _Layer = ctx.layer
        weight, values, columns, *origins = ctx.saved_tensors
        _, needs_x, _, needs_bias, needs_values, *rest = ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_bias = grad_values = None
        if needs_x:
            grad_x = layer.transposed_product(flat, weight, values).view(ctx.shape)
        if needs_bias:
            grad_bias = flat.sum(0).to(ctx.bias_dtype)
        if needs_values:
            kept = layer.kept_columns(columns, tuple(origins)).to(flat.dtype)
            # With gradients enabled somebody will differentiate this gradient.
            found = layer.pattern.gradient(flat, kept, dense=torch.is_grad_enabled())
            grad_values = found.to(values.dtype)
        return None, grad_x, None, grad_bias, grad_values, *(None for _ in rest)
