"""The sparse linear map and its gradients equal the dense reference in float64, whatever the pattern."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sensitune.tuner._sparse import SparsePattern, add_slices, sparse_linear


def compare_with_dense(
    rows: torch.Tensor, columns: torch.Tensor, out: int, inner: int, *, bias: bool = True
) -> SparsePattern:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, inner, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(out, inner, generator=generator, dtype=torch.float64)
    offset = torch.randn(out, generator=generator, dtype=torch.float64, requires_grad=True) if bias else None
    values = torch.randn(len(rows), generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, 5, out, generator=generator, dtype=torch.float64)
    pattern = SparsePattern.build(rows, columns, (out, inner))
    leaves = [leaf for leaf in (x, offset, values) if leaf is not None]
    ours = sparse_linear(x, weight, offset, values, pattern)
    ours_grads = torch.autograd.grad(ours, leaves, upstream)
    dense = F.linear(x, weight.index_put((rows, columns), values, accumulate=True), offset)
    dense_grads = torch.autograd.grad(dense, leaves, upstream)
    torch.testing.assert_close(ours, dense)
    for ours_grad, dense_grad in zip(ours_grads, dense_grads, strict=True):
        torch.testing.assert_close(ours_grad, dense_grad)
    return pattern


@settings(max_examples=60, deadline=None)
@given(data=st.data(), out=st.integers(1, 9), inner=st.integers(1, 9), bias=st.booleans())
def test_any_pattern_gives_the_dense_output_and_gradients(
    data: st.DataObject, out: int, inner: int, bias: bool
) -> None:
    flat = data.draw(st.lists(st.integers(0, out * inner - 1), min_size=1, max_size=12))  # repeats: several adapters
    entries = torch.tensor(flat)
    compare_with_dense(entries // inner, entries % inner, out, inner, bias=bias)


def test_entries_in_few_columns_keep_only_those_columns() -> None:
    pattern = compare_with_dense(torch.arange(8), torch.tensor([3, 3, 3, 3, 5, 5, 5, 5]), 8, 16)
    assert pattern.columns is not None
    assert pattern.columns.tolist() == [3, 5]
    assert pattern.rows is None


def test_entries_in_few_rows_and_columns_use_a_box() -> None:
    pattern = compare_with_dense(torch.tensor([1, 6]), torch.tensor([3, 5]), 8, 16)
    assert pattern.rows is not None
    assert pattern.rows.tolist() == [1, 6]


def test_entries_in_most_columns_form_the_whole_matrix() -> None:
    pattern = compare_with_dense(torch.arange(8), torch.arange(8), 8, 8)
    assert pattern.columns is None


def test_backward_keeps_the_used_columns_of_the_input_and_nothing_of_its_size() -> None:
    kept: list[int] = []
    x = torch.randn(64, 100, requires_grad=True)
    values = torch.randn(4, requires_grad=True)
    pattern = SparsePattern.build(torch.tensor([0, 1, 2, 3]), torch.tensor([7, 7, 9, 9]), (50, 100))
    weight = torch.randn(50, 100)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor is not weight:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sparse_linear(x, weight, None, values, pattern).sum().backward()
    assert max(kept) == 64 * 2


def test_autocast_computes_in_half_precision_and_keeps_the_gradient_dtype() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    values = torch.randn(2, requires_grad=True)
    pattern = SparsePattern.build(torch.tensor([0, 1]), torch.tensor([2, 2]), (6, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sparse_linear(x, torch.randn(6, 8), torch.zeros(6, requires_grad=True), values, pattern)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert values.grad is not None
    assert values.grad.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("leading", [(4,), (2, 3)])
def test_slices_are_added_in_place_and_their_gradients_are_the_slices(leading: tuple[int, ...]) -> None:
    x = torch.randn(*leading, 10, dtype=torch.float64, requires_grad=True)
    first = torch.randn(*leading, 3, dtype=torch.float64, requires_grad=True)
    second = torch.randn(*leading, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(*leading, 10, dtype=torch.float64)
    y = add_slices(x * 2, [(0, first), (6, second)])
    expected = x * 2 + F.pad(first, (0, 7)) + F.pad(second, (6, 0))
    torch.testing.assert_close(y, expected)
    ours = torch.autograd.grad(y, [x, first, second], upstream)
    theirs = torch.autograd.grad(expected, [x, first, second], upstream)
    torch.testing.assert_close(ours, theirs)
