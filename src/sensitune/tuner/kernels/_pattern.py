"""Where sparse entries sit in a matrix, and the cheapest exact way through the products with them.

For ``y = x (W + S)ᵀ`` with S sparse, the gradient of an entry ``S[i, j]`` is ``Σ_t G[t, i] · X[t, j]``. Sensitive
entries crowd into few input columns, so only those columns of X need be kept. Then either one dense product over the
box of the rows between the first and the last used one × the used columns is formed and read at the entries, or, where
the box is wide and thinly filled, only the entries themselves (`torch.sparse.sampled_addmm`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

# Fitted by benchmarks/speed/sparse_gradient.py, in units of one element of the box in the dense product: what
# sampled_addmm costs for every entry, and for every output feature.
_SAMPLED_ENTRY_COST = 8.0
_SAMPLED_ROW_COST = 134.0
_BOX_COLUMNS = 0.5  # share of used columns above which copying them saves too little: the input itself is kept
# Fitted by the same script, in units of copying one element of the weight: what the product with S, added beside W's,
# costs for every token and used row or column, and for every token and element of the box.
_BESIDE_EDGE_COST = 0.74
_BESIDE_BOX_COST = 0.042
_FULL_PRECISION = frozenset({torch.float32, torch.float64})


@dataclass(frozen=True, eq=False)
class SparsePattern:
    """The entries of a sparse correction S of a matrix ``[out, in]``, each position once, by row, then column.

    Attributes:
        shape: ``(out, in)``.
        stored: Flat index of every entry in the weight as stored, int64 ``[n]``.
        merged: For every value that was given, the entry it belongs to; None when they are one and the same. Several
            adapters may share a position; their values add.
        rows: First used output feature, and the one behind the last; a range, so that taking it copies nothing.
        used_columns: Used input features ``[C]``; None when they are so many that the whole input is kept instead.
        position: Flat index of every entry in the box ``[R, C or in]``, R the length of the range of rows.
        row_starts: First entry of every row of the box and the number of entries, ``[R + 1]``.
        box_columns: Column of every entry in the box.
    """

    shape: tuple[int, int]
    stored: torch.Tensor
    merged: torch.Tensor | None
    rows: tuple[int, int]
    used_columns: torch.Tensor | None
    position: torch.Tensor
    row_starts: torch.Tensor
    box_columns: torch.Tensor

    @classmethod
    def build(
        cls, rows: torch.Tensor, columns: torch.Tensor, shape: tuple[int, int], *, transposed: bool = False
    ) -> SparsePattern:
        """Work out a pattern once.

        Args:
            rows: Row of every value, int64 ``[n]``, in any order, repeats allowed.
            columns: Column of every value.
            shape: ``(out, in)``.
            transposed: Whether the weight is stored ``[in, out]``.

        Returns:
            The pattern.
        """
        given = rows * shape[1] + columns
        flat, merged = given.unique(return_inverse=True)
        same = flat.numel() == given.numel() and bool((flat == given).all())
        rows, columns = flat // shape[1], flat % shape[1]
        first, stop = int(rows[0]), int(rows[-1]) + 1
        used_columns, box_columns = _used(columns, shape[1])
        width = shape[1] if used_columns is None else used_columns.numel()
        counts = torch.bincount(rows - first, minlength=stop - first)
        return cls(
            shape=shape,
            stored=columns * shape[0] + rows if transposed else flat,
            merged=None if same else merged,
            rows=(first, stop),
            used_columns=used_columns,
            position=(rows - first) * width + box_columns,
            row_starts=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            box_columns=box_columns,
        )

    def entries(self, values: torch.Tensor) -> torch.Tensor:
        """One value per position ``[n]``; differentiable."""
        if self.merged is None:
            return values
        return values.new_zeros(self.stored.numel()).index_add(0, self.merged, values)

    @property
    def box_shape(self) -> tuple[int, int]:
        """Size of the box."""
        return self.rows[1] - self.rows[0], self.shape[1] if self.used_columns is None else self.used_columns.numel()

    def in_box(self, y: torch.Tensor) -> torch.Tensor:
        """The box's rows of an output or its gradient ``[tokens, out]``, as a view ``[tokens, R]``."""
        return y[:, self.rows[0] : self.rows[1]]

    def box(self, values: torch.Tensor) -> torch.Tensor:
        """S in its box, dense, differentiable; one value per position is given."""
        height, width = self.box_shape
        return values.new_zeros(height * width).scatter(0, self.position, values).view(height, width)

    def corrected(self, weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """``W + S`` as a new tensor, stored as W is; differentiable in the values.

        Args:
            weight: W as stored.
            values: One value per position.

        Returns:
            A tensor of the weight's shape and dtype.
        """
        return weight.flatten().index_add(0, self.stored, values.to(weight.dtype)).view(weight.shape)

    def keep(self, x: torch.Tensor) -> torch.Tensor:
        """What of the input ``[..., in]`` the entries' gradients need: the used columns, or all of it."""
        return x if self.used_columns is None else x.index_select(-1, self.used_columns)

    def beside_is_cheaper(self, x: torch.Tensor) -> bool:
        """Whether adding the product with S to the product with W costs less than a copy of W with S in it.

        In half precision it is also more exact: W + S would be rounded to W's few digits.

        Args:
            x: What is multiplied, ``[tokens, in]``, or backward the gradient ``[tokens, out]``.

        Returns:
            True for few tokens, few rows and few columns.
        """
        if self.used_columns is None:
            return False
        height, width = self.box_shape
        cost = x.shape[0] * (_BESIDE_EDGE_COST * (height + width) + _BESIDE_BOX_COST * height * width)
        return x.dtype not in _FULL_PRECISION or cost < self.shape[0] * self.shape[1]

    def add_product(self, y: torch.Tensor, x: torch.Tensor, values: torch.Tensor) -> None:
        """``y += x Sᵀ`` in place, for ``y [tokens, out]`` and ``x [tokens, in]``."""
        self.in_box(y).addmm_(self.keep(x), self.box(values).to(x.dtype).t())

    def add_transposed_product(self, grad_x: torch.Tensor, grad: torch.Tensor, values: torch.Tensor) -> None:
        """``grad_x += grad S`` in place, for ``grad_x [tokens, in]`` and ``grad [tokens, out]``; few columns only."""
        assert self.used_columns is not None
        grad_x.index_add_(1, self.used_columns, self.in_box(grad) @ self.box(values).to(grad.dtype))

    def gradient(self, grad: torch.Tensor, kept: torch.Tensor, *, dense: bool = False) -> torch.Tensor:
        """The exact gradients of all entries.

        Args:
            grad: Gradient of the output ``[tokens, out]``.
            kept: What `keep` returned ``[tokens, C or in]``.
            dense: Compute it by operations that are differentiable themselves.

        Returns:
            ``Σ_t grad[t, row] · x[t, column]`` per entry ``[n]``.
        """
        grad = self.in_box(grad)
        if not dense and self._sampled_is_cheaper(grad):
            return self._sampled(grad, kept)
        return (grad.t() @ kept).flatten().index_select(0, self.position)

    def _sampled(self, grad: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        zeros = kept.new_zeros(self.stored.numel())
        with warnings.catch_warnings():  # torch calls every CSR tensor a beta feature, once per process
            warnings.simplefilter("ignore", UserWarning)
            mask = torch.sparse_csr_tensor(
                self.row_starts, self.box_columns, zeros, self.box_shape, check_invariants=False
            )
            sampled: torch.Tensor = torch.sparse.sampled_addmm(mask, grad.t(), kept, beta=0.0)
        return sampled.values()

    def _sampled_is_cheaper(self, grad: torch.Tensor) -> bool:
        if grad.device.type != "cpu" or grad.dtype not in _FULL_PRECISION:
            return False  # elsewhere the dense product is what the hardware is built for
        height, width = self.box_shape
        return _SAMPLED_ENTRY_COST * self.stored.numel() + _SAMPLED_ROW_COST * height < height * width


def _used(index: torch.Tensor, size: int) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The distinct values of an index and each element's place among them; None when they are most of all `size`."""
    used, place = index.unique(return_inverse=True)
    return (None, index) if used.numel() > _BOX_COLUMNS * size else (used, place)
