"""Both implementations of a tuned linear layer equal the dense reference in float64, second derivatives included."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from sensitune.tuner.kernels import LinearParts, LowRank, SparsePattern, SparseValues, add_slices, tuned_linear
from sensitune.tuner.kernels._portable import portable
from sensitune.tuner.kernels._tuned_linear import lean

WAYS = [pytest.param(lean, id="lean"), pytest.param(portable, id="portable")]
Way = Callable[..., torch.Tensor]


def dense(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    entries: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    slices: tuple[tuple[int, torch.Tensor, torch.Tensor], ...] = (),
) -> torch.Tensor:
    """The slow, obvious reference: every change as a dense matrix."""
    if entries is not None:
        rows, columns, values = entries
        weight = weight.index_put((rows, columns), values, accumulate=True)
    for start, down, up in slices:
        weight = weight + F.pad(up @ down, (0, 0, start, weight.shape[0] - start - up.shape[0]))
    return F.linear(x, weight, bias)


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@contextmanager
def products_by(way: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the pattern choose one way through the product: beside W, or with a copy of it."""
    with monkeypatch.context() as context:
        context.setattr(
            SparsePattern, "beside_is_cheaper", lambda self, x: way == "beside" and self.used_columns is not None
        )
        yield


def compare(rows: torch.Tensor, columns: torch.Tensor, out: int, inner: int, *, bias: bool = True) -> SparsePattern:
    """Values at given places, repeats allowed: output and gradients as the reference's, in every way, W untouched."""
    x, offset, values = leaf(3, 5, inner), leaf(out) if bias else None, leaf(len(rows))
    weight, upstream = torch.randn(out, inner, dtype=torch.float64), torch.randn(3, 5, out, dtype=torch.float64)
    leaves = [each for each in (x, offset, values) if each is not None]
    expected = dense(x, weight, offset, (rows, columns, values))
    expected_gradients = torch.autograd.grad(expected, leaves, upstream)
    for transposed in (False, True):
        pattern = SparsePattern.build(rows, columns, (out, inner), transposed=transposed)
        stored = weight.t().contiguous() if transposed else weight.clone()
        before = stored.clone()
        for way in (lean, portable):
            sparse = SparseValues(pattern, pattern.entries(values))
            ours = way(x, LinearParts(stored, offset, transposed=transposed, sparse=sparse))
            torch.testing.assert_close(ours, expected)
            torch.testing.assert_close(torch.autograd.grad(ours, leaves, upstream), expected_gradients)
            assert torch.equal(stored, before)
    return SparsePattern.build(rows, columns, (out, inner))


@pytest.mark.parametrize("product", ["beside", "copy"])
def test_any_pattern_gives_the_dense_output_and_gradients(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @settings(max_examples=40, deadline=None)
    @given(data=st.data(), out=st.integers(1, 9), inner=st.integers(1, 9), bias=st.booleans())
    def check(data: st.DataObject, out: int, inner: int, bias: bool) -> None:
        flat = data.draw(
            st.lists(st.integers(0, out * inner - 1), min_size=1, max_size=12)
        )  # repeats: several adapters
        entries = torch.tensor(flat)
        compare(entries // inner, entries % inner, out, inner, bias=bias)

    with products_by(product, monkeypatch):
        check()


def test_entries_in_few_columns_use_a_box_of_those_columns_and_of_the_rows_between_first_and_last() -> None:
    pattern = compare(torch.tensor([1, 6, 6]), torch.tensor([3, 5, 3]), 8, 16)
    assert pattern.used_columns is not None
    assert pattern.used_columns.tolist() == [3, 5]
    assert pattern.rows == (1, 7)
    assert pattern.box_shape == (6, 2)


def test_entries_in_most_columns_keep_the_input_itself() -> None:
    pattern = compare(torch.arange(8), torch.arange(8), 8, 8)
    assert pattern.used_columns is None
    assert not pattern.beside_is_cheaper(torch.zeros(1, 8))


def test_few_tokens_take_the_product_beside_the_weight_and_many_a_copy_of_it() -> None:
    pattern = SparsePattern.build(torch.arange(64), torch.full((64,), 3), (64, 64))
    assert pattern.beside_is_cheaper(torch.zeros(4, 64))
    assert not pattern.beside_is_cheaper(torch.zeros(4_000, 64))
    assert pattern.beside_is_cheaper(torch.zeros(4_000, 64, dtype=torch.bfloat16))  # W + S would lose S's digits


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_both_ways_to_the_values_gradient_give_the_same(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.rand(300, 400, generator=generator) < share).nonzero(as_tuple=True)
    pattern = SparsePattern.build(rows, columns, (300, 400))
    grad, x = torch.randn(20, 300, dtype=torch.float64), torch.randn(20, 400, dtype=torch.float64)
    expected = (grad.t() @ x)[rows, columns]
    for cost in (-1e9, 1e9):
        monkeypatch.setattr("sensitune.tuner.kernels._pattern._SAMPLED_ENTRY_COST", cost)
        torch.testing.assert_close(pattern.gradient(grad, pattern.keep(x)), expected)


@pytest.mark.parametrize("way", WAYS)
def test_low_rank_slices_and_values_together_give_the_dense_output_and_gradients(way: Way) -> None:
    x, bias, values = leaf(3, 5, 7), leaf(10), leaf(2)
    slices = ((0, leaf(2, 7), leaf(4, 2)), (6, leaf(3, 7), leaf(3, 3)))
    rows, columns = torch.tensor([0, 9]), torch.tensor([6, 1])
    weight, upstream = torch.randn(10, 7, dtype=torch.float64), torch.randn(3, 5, 10, dtype=torch.float64)
    starts, downs, ups = zip(*slices, strict=True)
    sparse = SparseValues(SparsePattern.build(rows, columns, (10, 7)), values)
    ours = way(x, LinearParts(weight, bias, sparse=sparse, low_rank=[LowRank(starts, downs, ups)]))
    expected = dense(x, weight, bias, (rows, columns, values), slices)
    torch.testing.assert_close(ours, expected)
    leaves = [x, bias, values, *downs, *ups]
    gradients = torch.autograd.grad(ours, leaves, upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, upstream))


@pytest.mark.parametrize("way", WAYS)
def test_slices_of_two_adapters_add(way: Way) -> None:
    x, weight = leaf(4, 7), torch.randn(10, 7, dtype=torch.float64)
    one, other = (0, leaf(2, 7), leaf(4, 2)), (2, leaf(1, 7), leaf(8, 1))
    low_rank = [LowRank((start,), (down,), (up,)) for start, down, up in (one, other)]
    torch.testing.assert_close(
        way(x, LinearParts(weight, None, low_rank=low_rank)), dense(x, weight, None, slices=(one, other))
    )


def test_dropout_drops_single_elements_of_the_input_and_its_gradients_are_those_of_what_was_kept() -> None:
    x, down, up = leaf(400, 50), leaf(2, 50), leaf(6, 2)
    weight, upstream = torch.randn(6, 50, dtype=torch.float64), torch.randn(400, 6, dtype=torch.float64)
    y = lean(x, LinearParts(weight, None, low_rank=[LowRank((0,), (down,), (up,), dropout=0.25)]))
    kept = next(tensor for tensor in y.grad_fn.saved_tensors if tensor is not None and tensor.dtype == torch.uint8)
    assert kept.shape == x.shape
    assert abs(kept.double().mean().item() - 0.75) < 0.02
    scale = 2**16 / (2**16 - round(0.25 * 2**16))
    expected = F.linear(x, weight) + F.linear(F.linear(x * kept * scale, down), up)
    torch.testing.assert_close(y, expected)
    leaves = [x, down, up]
    torch.testing.assert_close(
        torch.autograd.grad(y, leaves, upstream), torch.autograd.grad(expected, leaves, upstream)
    )


@pytest.mark.parametrize("way", WAYS)
def test_dropout_keeps_the_expectation(way: Way) -> None:
    x, weight = torch.ones(20_000, 16), torch.zeros(1, 16)
    low_rank = LowRank((0,), (torch.ones(1, 16),), (torch.ones(1, 1),), dropout=0.1)
    assert way(x, LinearParts(weight, None, low_rank=[low_rank])).mean().item() == pytest.approx(16, rel=5e-3)


@pytest.mark.parametrize("way", WAYS)
def test_drop_path_drops_whole_samples(way: Way) -> None:
    x, weight = torch.ones(400, 3, 4), torch.zeros(2, 4)
    low_rank = LowRank((0,), (torch.ones(1, 4),), (torch.ones(2, 1),), drop_path=0.5)
    y = way(x, LinearParts(weight, None, low_rank=[low_rank]))
    assert set(y.unique().tolist()) == {0.0, 8.0}
    assert torch.equal(y, y[:, :1, :1].expand_as(y))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("made_by", ["nothing", "gelu", "norm"])
@pytest.mark.parametrize("with_low_rank", [False, True])
def test_second_derivatives_are_exact(way: Way, made_by: str, with_low_rank: bool) -> None:
    make = {"nothing": lambda u: u * 1.0, "gelu": F.gelu, "norm": nn.LayerNorm(6, dtype=torch.float64)}[made_by]
    pattern = SparsePattern.build(torch.tensor([0, 1, 4]), torch.tensor([3, 3, 4]), (5, 6))
    weight = torch.randn(5, 6, dtype=torch.float64)

    def function(inner: torch.Tensor, values: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        low_rank = [LowRank((1,), (down,), (up,))] if with_low_rank else []
        return way(make(inner), LinearParts(weight, None, sparse=SparseValues(pattern, values), low_rank=low_rank))

    inputs = (leaf(2, 6), leaf(3), leaf(2, 6), leaf(3, 2))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's own forward mode
def test_transforms_take_the_portable_implementation() -> None:
    pattern = SparsePattern.build(torch.tensor([0, 1, 4]), torch.tensor([3, 3, 4]), (5, 6))
    shapes = (5, 6), (7, 6), (3,), (2, 6), (3, 2)
    weight, x, values, down, up = (torch.randn(shape, dtype=torch.float64) for shape in shapes)

    def loss(values: torch.Tensor, down: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        low_rank = [LowRank((1,), (down,), (up,))]
        return (
            tuned_linear(x, LinearParts(weight, None, sparse=SparseValues(pattern, values), low_rank=low_rank))
            .square()
            .sum()
        )

    def plain(values: torch.Tensor, down: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        entries = torch.tensor([0, 1, 4]), torch.tensor([3, 3, 4]), values
        return dense(x, weight, None, entries, ((1, down, up),)).square().sum()

    arguments = (values, down, x)
    tangents = tuple(torch.randn_like(each) for each in arguments)
    per_sample = torch.func.vmap(torch.func.grad(loss, (0, 1)), in_dims=(None, None, 0))
    torch.testing.assert_close(
        per_sample(values, down, x[:, None]),
        torch.func.vmap(torch.func.grad(plain, (0, 1)), in_dims=(None, None, 0))(values, down, x[:, None]),
    )
    torch.testing.assert_close(torch.func.jvp(loss, arguments, tangents), torch.func.jvp(plain, arguments, tangents))
    torch.testing.assert_close(torch.func.hessian(loss)(*arguments), torch.func.hessian(plain)(*arguments))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_trace_holds_ordinary_operations_and_can_be_saved(tmp_path: Path) -> None:
    pattern = SparsePattern.build(torch.tensor([0, 1, 4]), torch.tensor([3, 3, 4]), (5, 6))
    weight, x, down, up = torch.randn(5, 6), torch.randn(7, 6), torch.randn(2, 6), torch.randn(3, 2)
    sparse = SparseValues(pattern, torch.randn(3))

    def layer(x: torch.Tensor) -> torch.Tensor:
        return tuned_linear(x, LinearParts(weight, None, sparse=sparse, low_rank=[LowRank((1,), (down,), (up,))]))

    torch.jit.trace(layer, x).save(str(tmp_path / "layer.pt"))
    torch.testing.assert_close(torch.jit.load(str(tmp_path / "layer.pt"))(x[:4]), layer(x[:4]))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's own forward mode
def test_forward_mode_takes_the_portable_implementation() -> None:
    pattern = SparsePattern.build(torch.tensor([0, 1]), torch.tensor([3, 3]), (5, 6))
    weight, x, values = torch.randn(5, 6), torch.randn(7, 6), torch.randn(2)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        y = tuned_linear(dual, LinearParts(weight, None, sparse=SparseValues(pattern, values)))
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    changed = weight.index_put((torch.tensor([0, 1]), torch.tensor([3, 3])), values, accumulate=True)
    torch.testing.assert_close(tangent, F.linear(torch.ones_like(x), changed))


@pytest.mark.parametrize("name", ["_transforms_are_active", "_hooks_on_saved_tensors"])
def test_where_torch_lacks_a_private_name_the_gradients_are_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = SparsePattern.build(torch.tensor([0, 1]), torch.tensor([3, 3]), (5, 6))
    weight, inner, values = torch.randn(5, 6), torch.randn(7, 6, requires_grad=True), torch.randn(2, requires_grad=True)

    def gradients() -> tuple[torch.Tensor, ...]:
        y = tuned_linear(F.gelu(inner), LinearParts(weight, None, sparse=SparseValues(pattern, values)))
        return torch.autograd.grad(y.square().sum(), [inner, values])

    with_it = gradients()
    module = "_watchers" if name == "_transforms_are_active" else "_source"
    monkeypatch.setattr(f"sensitune.tuner.kernels.{module}.{name}", lambda *_: True)
    torch.testing.assert_close(gradients(), with_it)


@pytest.mark.parametrize("way", WAYS)
def test_backward_keeps_the_used_columns_of_the_input_and_nothing_of_its_size(way: Way) -> None:
    kept: list[int] = []
    x, values, weight = (
        torch.randn(640, 100, requires_grad=True),
        torch.randn(4, requires_grad=True),
        torch.randn(50, 100),
    )
    pattern = SparsePattern.build(torch.tensor([0, 1, 2, 3]), torch.tensor([7, 7, 9, 9]), (50, 100))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() != weight.numel():
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        way(x, LinearParts(weight, None, sparse=SparseValues(pattern, values))).sum().backward()
    assert max(kept) == 640 * 2


def test_backward_keeps_one_byte_an_element_of_a_dropout_and_the_input_by_reference() -> None:
    x, down, up = torch.randn(640, 100, requires_grad=True), torch.randn(2, 100, requires_grad=True), torch.randn(50, 2)
    y = lean(x, LinearParts(torch.randn(50, 100), None, low_rank=[LowRank((0,), (down,), (up,), dropout=0.1)]))
    kept = [tensor for tensor in y.grad_fn.saved_tensors if tensor is not None]
    new = [tensor for tensor in kept if tensor.data_ptr() not in {x.data_ptr(), down.data_ptr(), up.data_ptr()}]
    assert sum(tensor.nbytes for tensor in new) == 640 * 100 + 640 * 2 * 4  # the mask, and the hidden features


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
    reason="this torch does not say whether saved tensors are watched, so the input is kept",
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
        y = lean(made, LinearParts(weight, None, sparse=SparseValues(pattern, values)))
        assert all(tensor is None or tensor.data_ptr() in own for tensor in y.grad_fn.saved_tensors)


def test_nothing_of_a_norms_input_outlives_backward_while_the_output_is_held() -> None:
    pattern = SparsePattern.build(torch.arange(4), torch.tensor([7, 7, 9, 11]), (50, 100))
    values, norm = torch.randn(4, requires_grad=True), nn.LayerNorm(100)
    inner = torch.randn(640, 100, requires_grad=True) * 1.0
    storage = inner.untyped_storage()
    references = storage._use_count() if hasattr(storage, "_use_count") else None
    y = lean(norm(inner), LinearParts(torch.randn(50, 100), None, sparse=SparseValues(pattern, values)))
    loss = y.sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="freed|backward through the graph a second time"):
        _ = y.grad_fn.saved_tensors
    if references is not None:
        assert storage._use_count() == references


@pytest.mark.parametrize("made_by", ["gelu", "tanh gelu", "norm", "plain norm"])
@pytest.mark.parametrize("with_low_rank", [False, True])
def test_inputs_that_are_computed_again_give_the_dense_gradients(made_by: str, with_low_rank: bool) -> None:
    make = {
        "gelu": F.gelu,
        "tanh gelu": lambda u: F.gelu(u, approximate="tanh"),
        "norm": nn.LayerNorm(16, dtype=torch.float64),
        "plain norm": nn.LayerNorm(16, elementwise_affine=False),
    }[made_by]
    inner, values, down, up = leaf(3, 5, 16), leaf(4), leaf(2, 16), leaf(8, 2)
    rows, columns = torch.tensor([0, 1, 5, 7]), torch.tensor([3, 3, 4, 9])
    weight, upstream = torch.randn(8, 16, dtype=torch.float64), torch.randn(3, 5, 8, dtype=torch.float64)
    sparse = SparseValues(SparsePattern.build(rows, columns, (8, 16)), values)
    slices = ((0, down, up),) if with_low_rank else ()
    low_rank = [LowRank((start,), (one,), (other,)) for start, one, other in slices]
    ours = lean(make(inner), LinearParts(weight, None, sparse=sparse, low_rank=low_rank))
    expected = dense(make(inner), weight, None, (rows, columns, values), slices)
    torch.testing.assert_close(ours, expected)
    leaves = [inner, values, *([down, up] if with_low_rank else [])]
    gradients = torch.autograd.grad(ours, leaves, upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, upstream))


def test_a_checkpointed_layer_gives_the_same_gradients() -> None:
    pattern = SparsePattern.build(torch.arange(4), torch.tensor([7, 7, 9, 11]), (50, 100))
    weight, values = torch.randn(50, 100), torch.randn(4, requires_grad=True)
    inner, down, up = torch.randn(64, 100, requires_grad=True), torch.randn(2, 100), torch.randn(50, 2)
    low_rank = [LowRank((0,), (down,), (up,), dropout=0.5, drop_path=0.5)]

    def layer(u: torch.Tensor) -> torch.Tensor:
        return lean(F.gelu(u), LinearParts(weight, None, sparse=SparseValues(pattern, values), low_rank=low_rank))

    torch.manual_seed(0)
    plain = torch.autograd.grad(layer(inner).square().sum(), [inner, values])
    torch.manual_seed(0)
    again = torch.autograd.grad(checkpoint(layer, inner, use_reentrant=False).square().sum(), [inner, values])
    torch.testing.assert_close(again, plain)


def test_a_thread_that_reads_the_weight_always_sees_the_weight() -> None:
    weight, x = torch.randn(256, 256), torch.randn(512, 256)
    before = weight.clone()
    pattern = SparsePattern.build(torch.arange(256), torch.arange(256), (256, 256))
    sparse = SparseValues(pattern, torch.full((256,), 1e3, requires_grad=True))
    stop = threading.Event()

    def train() -> None:
        while not stop.is_set():
            lean(x, LinearParts(weight, None, sparse=sparse)).sum().backward()

    thread = threading.Thread(target=train)
    thread.start()
    try:
        assert all(torch.equal(weight, before) for _ in range(300))
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("way", WAYS)
def test_autocast_computes_in_half_precision_and_keeps_the_gradient_dtype(way: Way) -> None:
    x, values = torch.randn(4, 8, requires_grad=True), torch.randn(2, requires_grad=True)
    down, up = torch.randn(2, 8, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    sparse = SparseValues(SparsePattern.build(torch.tensor([0, 1]), torch.tensor([2, 2]), (6, 8)), values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        offset = torch.zeros(6, requires_grad=True)
        y = way(x, LinearParts(torch.randn(6, 8), offset, sparse=sparse, low_rank=[LowRank((0,), (down,), (up,))]))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    for trained in (x, values, down, up, offset):
        assert trained.grad is not None
        assert trained.grad.dtype == torch.float32


@pytest.mark.parametrize("way", WAYS)
def test_a_half_precision_weight_takes_trained_values_in_full_precision(way: Way) -> None:
    x, weight = torch.randn(4, 8).bfloat16(), torch.randn(6, 8).bfloat16()
    values = torch.tensor([1e-4], requires_grad=True)  # lost in the rounding of W + S
    down, up = torch.randn(2, 8, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    sparse = SparseValues(SparsePattern.build(torch.tensor([0]), torch.tensor([2]), (6, 8)), values)
    y = way(x, LinearParts(weight, None, sparse=sparse, low_rank=[LowRank((0,), (down,), (up,))]))
    expected = F.linear(x.float(), weight.float() + up @ down)
    torch.testing.assert_close(y.float(), expected, rtol=3e-2, atol=3e-2)
    y.float().sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, x.float()[:, 2].sum()[None], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("leading", [(4,), (2, 3)])
def test_slices_are_added_in_place_and_their_gradients_are_the_slices(leading: tuple[int, ...]) -> None:
    x, first, second = leaf(*leading, 10), leaf(*leading, 3), leaf(*leading, 4)
    upstream = torch.randn(*leading, 10, dtype=torch.float64)
    y = add_slices(x * 2, [(0, first), (6, second)])
    expected = x * 2 + F.pad(first, (0, 7)) + F.pad(second, (6, 0))
    torch.testing.assert_close(y, expected)
    ours = torch.autograd.grad(y, [x, first, second], upstream)
    theirs = torch.autograd.grad(expected, [x, first, second], upstream)
    torch.testing.assert_close(ours, theirs)
