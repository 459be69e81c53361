"""The sparse linear map and its gradients equal the dense reference in float64, whatever the pattern."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from sensitune.tuner._fused import LowRank, fused_linear
from sensitune.tuner._pattern import SparsePattern
from sensitune.tuner._sparse import add_slices, sparse_linear

Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, SparsePattern], torch.Tensor]


def portable(x, weight, bias, values, pattern):
    return sparse_linear(x, weight, bias, pattern.entries(values), pattern)


def fused(x, weight, bias, values, pattern):
    return fused_linear(x, weight, bias, pattern=pattern, values=pattern.entries(values))


def fused_transposed(x, weight, bias, values, pattern):
    rows, columns = torch.unravel_index(pattern.matrix_position, pattern.shape)
    turned = SparsePattern.build(rows, columns, pattern.shape, transposed=True)
    stored = weight.t().contiguous()
    return fused_linear(x, stored, bias, transposed=True, pattern=turned, values=pattern.entries(values))


WAYS: tuple[Way, ...] = (portable, fused, fused_transposed)


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
    dense = F.linear(x, weight.index_put((rows, columns), values, accumulate=True), offset)
    dense_grads = torch.autograd.grad(dense, leaves, upstream)
    untouched = weight.clone()
    for way in WAYS:
        ours = way(x, weight, offset, values, pattern)
        torch.testing.assert_close(ours, dense)
        torch.testing.assert_close(torch.autograd.grad(ours, leaves, upstream), dense_grads)
        assert torch.equal(weight, untouched)
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
    assert pattern.used_columns is not None
    assert pattern.used_columns.tolist() == [3, 5]
    assert pattern.used_rows is None


def test_entries_in_few_rows_and_columns_use_a_box() -> None:
    pattern = compare_with_dense(torch.tensor([1, 6]), torch.tensor([3, 5]), 8, 16)
    assert pattern.used_rows is not None
    assert pattern.used_rows.tolist() == [1, 6]


def test_entries_in_most_columns_keep_the_input_itself() -> None:
    pattern = compare_with_dense(torch.arange(8), torch.arange(8), 8, 8)
    assert pattern.used_columns is None


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_both_ways_to_the_gradient_give_the_same(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.rand(300, 400, generator=generator) < share).nonzero(as_tuple=True)
    pattern = SparsePattern.build(rows, columns, (300, 400))
    grad, x = torch.randn(20, 300, dtype=torch.float64), torch.randn(20, 400, dtype=torch.float64)
    expected = (grad.t() @ x)[rows, columns]
    for cost in (-1e9, 1e9):
        monkeypatch.setattr("sensitune.tuner._pattern._SAMPLED_ENTRY_COST", cost)
        torch.testing.assert_close(pattern.gradient(grad, pattern.keep(x)), expected)


@pytest.mark.parametrize("way", WAYS)
def test_backward_keeps_the_used_columns_of_the_input_and_nothing_of_its_size(way: Way) -> None:
    kept: list[int] = []
    x = torch.randn(640, 100, requires_grad=True)
    values = torch.randn(4, requires_grad=True)
    pattern = SparsePattern.build(torch.tensor([0, 1, 2, 3]), torch.tensor([7, 7, 9, 9]), (50, 100))
    weight = torch.randn(50, 100)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() != weight.numel():
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        way(x, weight, None, values, pattern).sum().backward()
    assert max(kept) == 640 * 2


@pytest.mark.parametrize("with_sparse", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_low_rank_slices_give_the_dense_output_and_gradients(with_sparse: bool, scaled: bool) -> None:
    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    x, bias, values = leaf(3, 5, 7), leaf(10), leaf(2)
    downs, ups = (leaf(2, 7), leaf(3, 7)), (leaf(4, 2), leaf(3, 3))
    weight, upstream = torch.randn(10, 7, dtype=torch.float64), torch.randn(3, 5, 10, dtype=torch.float64)
    rows, columns = torch.tensor([0, 9]), torch.tensor([6, 1])
    pattern = SparsePattern.build(rows, columns, (10, 7)) if with_sparse else None
    scale = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64) if scaled else torch.ones(3, dtype=torch.float64)
    low_rank = LowRank((0, 6), downs, ups, scale.repeat_interleave(5).view(-1, 1) if scaled else None)
    ours = fused_linear(x, weight, bias, pattern=pattern, values=values if with_sparse else None, low_rank=low_rank)
    dense = F.linear(x, weight.index_put((rows, columns), values, accumulate=True) if with_sparse else weight, bias)
    for start, down, up in zip((0, 6), downs, ups, strict=True):
        part = F.linear(F.linear(x, down), up) * scale.view(3, 1, 1)
        dense = dense + F.pad(part, (start, 10 - start - up.shape[0]))
    torch.testing.assert_close(ours, dense)
    leaves = [x, bias, *downs, *ups, *([values] if with_sparse else [])]
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(dense, leaves, upstream)
    )


def test_a_product_that_fails_leaves_the_weight_as_it_was() -> None:
    weight = torch.randn(4, 6)
    before, version = weight.clone(), weight._version
    pattern = SparsePattern.build(torch.tensor([1]), torch.tensor([2]), (4, 6))
    with pytest.raises(RuntimeError, match="shape"):
        fused_linear(torch.randn(2, 5), weight, None, pattern=pattern, values=torch.ones(1))
    assert torch.equal(weight, before)
    assert weight._version == version


def test_threads_that_share_a_weight_do_not_see_each_others_values() -> None:
    weight, x = torch.randn(64, 64), torch.randn(16, 64)
    pattern = SparsePattern.build(torch.arange(64), torch.arange(64), (64, 64))
    expected = [F.linear(x, weight + torch.eye(64) * turn) for turn in range(4)]

    def run(turn: int) -> bool:
        values = torch.full((64,), float(turn))
        return all(
            torch.allclose(fused_linear(x, weight, None, pattern=pattern, values=values), expected[turn], atol=1e-5)
            for _ in range(50)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))


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


@pytest.mark.parametrize("made_by", ["gelu", "tanh gelu", "norm", "plain norm"])
@pytest.mark.parametrize("with_low_rank", [False, True])
def test_inputs_that_are_computed_again_give_the_dense_gradients(made_by: str, with_low_rank: bool) -> None:
    make = {
        "gelu": F.gelu,
        "tanh gelu": lambda u: F.gelu(u, approximate="tanh"),
        "norm": nn.LayerNorm(16, dtype=torch.float64),
        "plain norm": nn.LayerNorm(16, elementwise_affine=False),
    }[made_by]
    inner = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    values = torch.randn(4, dtype=torch.float64, requires_grad=True)
    down, up = torch.randn(2, 16, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    leaves = [inner, values, *([down.requires_grad_(), up.requires_grad_()] if with_low_rank else [])]
    rows, columns = torch.tensor([0, 1, 5, 7]), torch.tensor([3, 3, 4, 9])
    weight, upstream = torch.randn(8, 16, dtype=torch.float64), torch.randn(3, 5, 8, dtype=torch.float64)
    pattern = SparsePattern.build(rows, columns, (8, 16))
    low_rank = LowRank((0,), (down,), (up,)) if with_low_rank else None
    ours = fused_linear(make(inner), weight, None, pattern=pattern, values=values, low_rank=low_rank)
    changed = weight.index_put((rows, columns), values, accumulate=True) + (up @ down if with_low_rank else 0.0)
    dense = F.linear(make(inner), changed)
    torch.testing.assert_close(ours, dense)
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(dense, leaves, upstream)
    )


def test_an_input_made_by_a_norm_or_a_gelu_is_not_kept_at_all() -> None:
    pattern = SparsePattern.build(torch.arange(4), torch.tensor([7, 7, 9, 11]), (50, 100))
    weight, values = torch.randn(50, 100), torch.randn(4, requires_grad=True)
    for make in (F.gelu, nn.LayerNorm(100)):
        inner = torch.randn(640, 100, requires_grad=True)
        made = make(inner)
        own = {inner.data_ptr(), weight.data_ptr(), values.data_ptr()}
        own |= {
            tensor.data_ptr()
            for name in dir(made.grad_fn)
            if isinstance(tensor := getattr(made.grad_fn, name), torch.Tensor)
        }
        y = fused_linear(made, weight, None, pattern=pattern, values=values)
        assert all(tensor is None or tensor.data_ptr() in own for tensor in y.grad_fn.saved_tensors)


def test_a_checkpointed_layer_keeps_its_columns_itself_and_gives_the_same_gradients() -> None:
    pattern = SparsePattern.build(torch.arange(4), torch.tensor([7, 7, 9, 11]), (50, 100))
    weight, values = torch.randn(50, 100), torch.randn(4, requires_grad=True)
    inner = torch.randn(64, 100, requires_grad=True)

    def layer(u: torch.Tensor) -> torch.Tensor:
        return fused_linear(F.gelu(u), weight, None, pattern=pattern, values=values)

    plain = torch.autograd.grad(layer(inner).square().sum(), [inner, values])
    again = torch.autograd.grad(checkpoint(layer, inner, use_reentrant=False).square().sum(), [inner, values])
    torch.testing.assert_close(again, plain)
