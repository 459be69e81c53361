"""Where sparse entries sit in a matrix, and the cheapest way to their gradients.

For ``y = (W + S) x`` with S sparse, the gradient of an entry ``S[i, j]`` is ``Σ_t G[t, i] · X[t, j]``. Sensitive
entries crowd into few input columns, so only those columns of X need be kept. Then either one dense product over the
box of used rows × used columns is formed and read at the entries, or, where the box is wide and thinly filled, only the
entries themselves (`torch.sparse.sampled_addmm`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

# Fitted by benchmarks/speed/sparse_gradient.py, in units of one element of the box in the dense product: what
# sampled_addmm costs for every entry, and for every output feature.
_SAMPLED_ENTRY_COST = 5.1
_SAMPLED_ROW_COST = 65.0
_BOX_COLUMNS = 0.5  # share of used columns above which copying them saves too little: the input itself is kept


@dataclass(frozen=True, eq=False)
class SparsePattern:
    """The entries of a sparse correction of a matrix ``[out, in]``, each position once, sorted by row, then column.

    Attributes:
        shape: ``(out, in)``.
        stored: Flat index of every entry in the weight as stored, int64 ``[n]``.
        merged: For every value that was given, the entry it belongs to; None when they are one and the same. Several
            adapters may share a position; their values add.
        used_rows: Used output features ``[R]``; None when more than half are used and the box spans every row.
        used_columns: Used input features ``[C]``; None when they are so many that the whole input is kept instead.
        position: Flat index of every entry in the box ``[R or out, C or in]``.
        matrix_position: Flat index of every entry in ``[out, in]``.
        row_starts: First entry of every row of the matrix and the number of entries, ``[out + 1]``.
        box_columns: Column of every entry in the box.
    """

    shape: tuple[int, int]
    stored: torch.Tensor
    merged: torch.Tensor | None
    used_rows: torch.Tensor | None
    used_columns: torch.Tensor | None
    position: torch.Tensor
    matrix_position: torch.Tensor
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
        used_rows, box_rows = _used(rows, shape[0], _BOX_COLUMNS)
        used_columns, box_columns = _used(columns, shape[1], _BOX_COLUMNS)
        width = shape[1] if used_columns is None else used_columns.numel()
        counts = torch.bincount(rows, minlength=shape[0])
        return cls(
            shape=shape,
            stored=columns * shape[0] + rows if transposed else flat,
            merged=None if same else merged,
            used_rows=used_rows,
            used_columns=used_columns,
            position=box_rows * width + box_columns,
            matrix_position=flat,
            row_starts=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            box_columns=box_columns,
        )

    def entries(self, values: torch.Tensor) -> torch.Tensor:
        """One value per position ``[n]``; differentiable."""
        if self.merged is None:
            return values
        return values.new_zeros(self.stored.numel()).index_add(0, self.merged, values)

    def keep(self, x: torch.Tensor) -> torch.Tensor:
        """What of the input ``[tokens, in]`` the entries' gradients need: the used columns, or all of it."""
        return x if self.used_columns is None else x.index_select(1, self.used_columns)

    def gradient(self, grad: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """The exact gradients of all entries.

        Args:
            grad: Gradient of the output ``[tokens, out]``.
            kept: What `keep` returned.

        Returns:
            ``Σ_t grad[t, row] · x[t, column]`` per entry ``[n]``.
        """
        if self._sampled_is_cheaper(grad, kept.shape[1]):
            return self._sampled(grad, kept)
        used = grad if self.used_rows is None else grad.index_select(1, self.used_rows)
        return (used.t() @ kept).flatten()[self.position]

    def _sampled(self, grad: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        size = (self.shape[0], kept.shape[1])
        zeros = kept.new_zeros(self.stored.numel())
        with warnings.catch_warnings():  # torch calls every CSR tensor a beta feature, once per process
            warnings.simplefilter("ignore", UserWarning)
            mask = torch.sparse_csr_tensor(self.row_starts, self.box_columns, zeros, size, check_invariants=False)
            sampled: torch.Tensor = torch.sparse.sampled_addmm(mask, grad.t(), kept, beta=0.0)
        return sampled.values()

    def _sampled_is_cheaper(self, grad: torch.Tensor, width: int) -> bool:
        if grad.device.type != "cpu" or grad.dtype not in {torch.float32, torch.float64}:
            return False  # elsewhere the dense product is what the hardware is built for
        box = width * (self.shape[0] if self.used_rows is None else self.used_rows.numel())
        return _SAMPLED_ENTRY_COST * self.stored.numel() + _SAMPLED_ROW_COST * self.shape[0] < box


def _used(index: torch.Tensor, size: int, most: float) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The distinct values of an index and each element's place among them; None when they are most of all `size`."""
    used, place = index.unique(return_inverse=True)
    return (None, index) if used.numel() > most * size else (used, place)
