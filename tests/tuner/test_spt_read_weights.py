"""Layers whose weight another module reads instead of calling them: what is tuned counts in every mode all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from model_properties import assert_merged_equals_unmerged, assert_reload_equals, output_of
from newer import skip_before
from peft import PeftModel, get_peft_model
from torch import nn
from tuned_models import gradients_of, seeded, trained

from sensitune.errors import ModelError
from sensitune.tuner import SptConfig

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


def tuned(model: nn.Module, **options: object) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(model, SptConfig(init_weights=False, num_sparse=9, **options)).eval()  # type: ignore[arg-type]


# -- torch's own encoder, whose layers are called in training and read by a fused kernel in evaluation -----------------


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


FORMS = {"lora": {"r": 2}, "adapter": {"r": 2, "structured_type": "adapter"}, "sparse": {"r": 0}}
PADDING = {"none": None, "some": torch.arange(5) >= torch.tensor([[5], [3], [4]])}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("padded", PADDING)
@pytest.mark.parametrize("form", FORMS)
def test_a_fused_encoder_gives_without_gradients_what_it_gives_with_them(form: str, padded: str) -> None:
    model = tuned(seeded(Encoder), target_modules=["linear1", "linear2"], **FORMS[form])
    padding = PADDING[padded]
    kept = torch.ones(3, 5, dtype=torch.bool) if padding is None else ~padding  # the kernel puts zeros at the rest
    expected = model(X, padding)
    with torch.no_grad():
        torch.testing.assert_close(model(X, padding)[kept], expected[kept])
    with torch.inference_mode():
        torch.testing.assert_close(model(X, padding)[kept], expected[kept])
    if form != "adapter":
        with torch.no_grad():
            torch.testing.assert_close(model.merge_and_unload()(X, padding)[kept], expected[kept])


def test_a_disabled_or_merged_encoder_is_fused_as_the_base_is(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = []
    kernel = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *each: fused.append(each) or kernel(*each))
    model = tuned(seeded(Encoder), target_modules=["linear1", "linear2"], r=2)
    with torch.no_grad():
        model(X)
        assert not fused
        with model.disable_adapter():
            model(X)
        assert len(fused) == 2
        model.merge_adapter()
        model(X)
        assert len(fused) == 4


# -- a module that reads the weight in every mode ---------------------------------------------------------------------

Product = Callable[[torch.Tensor, nn.Module], torch.Tensor]

PRODUCTS: dict[str, Product] = {
    "called": lambda x, layer: layer(x),
    "by F.linear": lambda x, layer: F.linear(x, layer.weight, layer.bias),
    "by keyword": lambda x, layer: F.linear(input=x, weight=layer.weight, bias=layer.bias),
    "by matrix product": lambda x, layer: x @ layer.weight.t() + layer.bias,
    "by its data": lambda x, layer: F.linear(x, layer.weight.data, layer.bias.data),
    "in a list": lambda x, layer: F.linear(x, torch.cat([layer.weight[:3], layer.weight[3:]]), layer.bias),
}


class Reader(nn.Module):
    def __init__(self, product: str) -> None:
        super().__init__()
        self.layer, self.product = nn.Linear(8, 6), product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return PRODUCTS[self.product](x.to(self.layer.weight.dtype), self.layer)


def reader(product: str, **options: object) -> PeftModel:
    return tuned(seeded(lambda: Reader(product), dtype=torch.float64), target_modules=["layer"], **options)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("form", ["lora", "sparse"])
def test_a_read_weight_is_the_one_that_the_layer_computes_with(form: str, product: str) -> None:
    called, read = (reader(each, **FORMS[form]) for each in ("called", product))
    torch.testing.assert_close(read(X), called(X))
    if product != "by its data":
        expected = gradients_of(called, lambda: called(X).square().sum())
        torch.testing.assert_close(gradients_of(read.train(), lambda: read(X).square().sum()), expected)
    assert_merged_equals_unmerged(read.eval(), X)


@pytest.mark.parametrize("product", ["by F.linear", "by keyword"])
def test_a_linear_product_with_a_read_weight_has_the_layers_dropout_and_adapter(product: str) -> None:
    called, read = (reader(each, r=2, structured_type="adapter", dropout=0.5).train() for each in ("called", product))
    outputs = []
    for model in (called, read):
        torch.manual_seed(3)
        outputs.append(model(X))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(read.eval()(X), called.eval()(X))


def test_an_adapter_on_a_weight_that_is_read_otherwise_is_refused_with_advice_that_helps() -> None:
    model = reader("by matrix product", r=2, structured_type="adapter")
    with pytest.raises(ModelError, match=r"`layer.weight` is read by a module that never calls the layer, which has"):
        model(X)
    assert reader("by matrix product", r=2).train()(X).requires_grad


def test_a_read_weight_is_saved_loaded_and_switched_off_like_any(tmp_path: object) -> None:
    model = reader("by F.linear", r=2)
    base = seeded(lambda: Reader("by F.linear"), dtype=torch.float64)
    assert_reload_equals(model, seeded(lambda: Reader("by F.linear"), dtype=torch.float64), str(tmp_path), X)
    with model.disable_adapter():
        assert torch.equal(model(X), base(X))


def test_reading_a_weights_type_is_not_using_it() -> None:
    class Asker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.called, self.asked = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.asked.weight
            assert (weight.shape, weight.ndim, weight.size(0), len(weight)) == ((8, 8), 2, 8, 8)
            return self.called(x.to(weight.device, weight.dtype))

    model = tuned(Asker(), target_modules=["called", "asked"], r=2).train()
    with pytest.raises(ModelError, match="`asked` is tuned, but the first training forward never called it"):
        model(X)


def test_a_read_weight_cannot_be_changed_in_place_unnoticed() -> None:
    model = reader("called", r=2)
    layer = model.base_model.model.layer
    before = layer.base_layer.weight.detach().clone()
    for change in (
        lambda weight: nn.init.zeros_(weight),
        lambda weight: weight.data.copy_(before + 1),
        lambda weight: weight.data.__setitem__(0, 0.0),
        lambda weight: weight.div_(2),
    ):
        with (
            torch.no_grad(),
            pytest.raises(ModelError, match=r"`layer.weight` is tuned and cannot be changed in place"),
        ):
            change(layer.weight)
    assert torch.equal(layer.base_layer.weight, before)
    layer.weight.requires_grad_(True)
    assert layer.base_layer.weight.requires_grad


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_compiled_and_a_traced_reader_see_the_tuned_weight() -> None:
    skip_before("torch", "2.7", "it cannot trace PEFT's context manager")
    model = reader("by matrix product", r=2)
    expected = model(X.double())
    with torch.no_grad():
        traced = torch.jit.trace(model, X.double(), check_trace=False)
    torch.testing.assert_close(traced(X.double()), expected)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X.double()), expected)


# -- attributes -------------------------------------------------------------------------------------------------------


def test_a_wrapped_layer_answers_for_every_public_attribute_of_what_it_wraps() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, groups=2), nn.Conv1d(2, 2, 5), nn.Linear(3, 7))
    plain = {name: dict(vars(layer)) for name, layer in model.named_children()}
    wrapped = tuned(model, target_modules=["0", "1", "2"], r=2).base_model.model
    asked = 0
    for name, attributes in plain.items():
        for own, value in attributes.items():
            if not own.startswith("_") and own != "training":
                assert getattr(wrapped[int(name)], own) == value
                asked += 1
    assert asked > 20
    assert wrapped[0].stride == (2, 2)
    with pytest.raises(AttributeError, match="strides"):
        _ = wrapped[0].strides
    assert not hasattr(wrapped[0], "_hf_hook")


def test_parameters_are_trained_once() -> None:
    """What a layer answers for is not a parameter of its own."""
    model = reader("called", r=2)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in trained(model)} == {"default"}
    assert "base_model.model.layer.weight" not in dict(model.named_parameters())
    assert output_of(model, X).shape == (3, 5, 6)
