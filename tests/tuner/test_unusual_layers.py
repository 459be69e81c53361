"""Layers that are no plain product with their weight: a LoRA changes the weight itself, so that merging is exact."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from model_properties import assert_merged_equals_unmerged, assert_unmerging_restores, state_of, untouched
from newer import from_newer
from peft import get_peft_model
from timm.layers import Conv2dSame, GroupNormAct, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.layers.linear import Linear as TimmLinear
from timm.models.nfnet import NfCfg, NormFreeNet
from timm.models.resnetv2 import ResNetV2
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import (
    HubertConfig,
    HubertForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WavLMConfig,
    WavLMForSequenceClassification,
)
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.idefics.modeling_idefics import IdeficsDecoupledLinear
from transformers.models.perceiver.modeling_perceiver import Conv2dSamePadding
from tuned_models import make_allocation, mixed_allocation, seeded, tune

from sensitune.allocation import allocate
from sensitune.errors import ModelError
from sensitune.sensitivity import estimate_sensitivity
from sensitune.sites import find_sites, is_plain_convolution, is_plain_linear, outline_model
from sensitune.tuner import SptConfig

# PEFT 0.21.2 asks transformers 5 for a property that it renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FEATURES = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MAPS = torch.randn(2, 8, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Ternary(nn.Linear):
    """Quantises its weight on the fly."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight.abs().mean()
        rounded = (self.weight / scale).round().clamp(-1, 1) * scale
        return F.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


class Cosine(nn.Linear):
    """Normalises the rows of its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, F.normalize(self.weight), self.bias)


class Cast(nn.Conv2d):
    """Changes its weight where torch asks for the convolution, as speech models cast it."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super()._conv_forward(x, weight.tanh(), bias)


def grouped_linear(*sizes: int) -> nn.Module:
    layer: nn.Module = from_newer("transformers.models.deepseek_v4.modeling_deepseek_v4", "DeepseekV4GroupedLinear")(
        *sizes
    )
    return layer


# Layer -> (how to build it, what it eats)
LAYERS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "weight standardisation": (lambda: StdConv2d(8, 6, 1), MAPS),
    "weight standardisation, 3x3": (lambda: StdConv2d(8, 6, 3, groups=2), MAPS),
    "weight standardisation, padded": (lambda: StdConv2dSame(8, 6, 3, stride=2), MAPS),
    "scaled": (lambda: ScaledStdConv2d(8, 6, 1), MAPS),
    "scaled, padded": (lambda: ScaledStdConv2dSame(8, 6, 3, stride=2), MAPS),
    "bit of transformers": (lambda: WeightStandardizedConv2d(8, 6, 3, padding="SAME"), MAPS),
    "padding of its own": (lambda: Conv2dSame(8, 6, 3, stride=2), MAPS),
    "padding of its own, perceiver": (lambda: Conv2dSamePadding(8, 6, 3), MAPS),
    "an inner forward of its own": (lambda: Cast(8, 6, 1), MAPS),
    "quantised on the fly": (lambda: Ternary(8, 6), FEATURES),
    "rows of one length": (lambda: Cosine(8, 6), FEATURES),
    "falcon": (lambda: FalconLinear(8, 6), FEATURES),
    "timm": (lambda: TimmLinear(8, 6), FEATURES),
    "more columns beside": (lambda: IdeficsDecoupledLinear(8, 6, 2), FEATURES),
    "groups": (lambda: grouped_linear(4, 6, 2), FEATURES.view(5, 2, 4)),
}


@pytest.mark.parametrize("form", ["lora", "sparse"])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_runs_with_the_weight_that_a_merge_writes(layer: str, form: str) -> None:
    make, x = LAYERS[layer]
    config = SptConfig(target_modules=["0"], r=2 if form == "lora" else 0, num_sparse=9, init_weights=False)
    base = seeded(lambda: nn.Sequential(make()), noise=0.1, dtype=torch.float64)
    expected = seeded(lambda: nn.Sequential(make()), noise=0.1, dtype=torch.float64)
    expected.requires_grad_(True)
    tuned = get_peft_model(base, config).eval()
    change = tuned.base_model.model[0].get_delta_weight("default")
    with torch.no_grad():
        expected[0].weight.add_(change)
    torch.testing.assert_close(tuned(x), expected(x))
    found = torch.autograd.grad(tuned(x).square().sum(), tuned.base_model.model[0].tuned(*roles(form)))
    (dense,) = torch.autograd.grad(expected(x).square().sum(), expected[0].weight)
    (follows,) = torch.autograd.grad(
        tuned.base_model.model[0].get_delta_weight("default"), tuned.base_model.model[0].tuned(*roles(form)), dense
    )
    torch.testing.assert_close(found[0], follows)
    assert_unmerging_restores(tuned, x)
    assert_merged_equals_unmerged(tuned, x)


def roles(form: str) -> tuple[str, str, str]:
    return ("up" if form == "lora" else "sparse", "default", "weight")


@pytest.mark.parametrize("layer", ["scaled", "rows of one length", "falcon"])
def test_who_reads_the_weight_gets_what_a_merge_writes(layer: str) -> None:
    base = seeded(lambda: nn.Sequential(LAYERS[layer][0]()), noise=0.1, dtype=torch.float64)
    tuned = get_peft_model(base, SptConfig(target_modules=["0"], r=2, init_weights=False)).eval()
    wrapped = tuned.base_model.model[0]
    expected = wrapped.base_layer.weight + wrapped.get_delta_weight("default")
    torch.testing.assert_close(wrapped.weight + 0, expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_which_layers_are_plain_products(layer: str) -> None:
    made = LAYERS[layer][0]()
    assert (is_plain_linear(made) or is_plain_convolution(made)) == (layer in {"falcon", "timm"})


def test_what_is_a_plain_product_is_told_by_class() -> None:
    layer = nn.Linear(8, 6)
    assert is_plain_linear(layer)
    layer.forward = lambda x: 2 * F.linear(x, layer.weight)
    assert not is_plain_linear(layer)


def test_dropout_of_such_a_lora_is_right_on_average_and_off_outside_training() -> None:
    base = seeded(lambda: nn.Sequential(Cosine(8, 6)), dtype=torch.float64)
    tuned = get_peft_model(base, SptConfig(target_modules=["0"], r=2, init_weights=False, dropout=0.5, drop_path=0.2))
    layer = tuned.base_model.model[0]
    weight = layer.base_parameter("weight")
    torch.manual_seed(0)
    tuned.train()
    changes = torch.stack([layer.effective("weight") - weight for _ in range(2000)]).detach()
    expected = layer.get_delta_weight("default").detach()
    torch.testing.assert_close(changes.mean(0), expected, atol=0.07, rtol=0.0)
    assert 0.18 < (changes.flatten(1) == 0).all(1).double().mean() < 0.26  # drop-path, and dropout of all elements
    torch.testing.assert_close(tuned.eval().base_model.model[0].effective("weight") - weight, expected)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "nfnet": lambda: NormFreeNet(
        NfCfg(depths=(1, 1), channels=(16, 24), stem_type="3x3", stem_chs=8, group_size=8, bottle_ratio=0.5),
        num_classes=5,
    ),
    "bit": lambda: ResNetV2(
        layers=[1, 1], channels=(32, 64), stem_chs=32, num_classes=5, stem_type="fixed", conv_layer=StdConv2d,
        norm_layer=partial(GroupNormAct, num_groups=4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_weight_standardisation_merge_exactly(name: str) -> None:
    model = seeded(NETWORKS[name], noise=0.02, dtype=torch.float64)
    allocation = allocate(estimate_sensitivity(model, [(IMAGES, torch.arange(4))]), budget=600, rank=2)
    assert allocation.structured
    assert_merged_equals_unmerged(tune(model, allocation), IMAGES)


class Pair(nn.Module):
    """A layer, perhaps one that computes its weight, before an ordinary one and the head."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.a, self.b, self.head = wrap(nn.Linear(8, 8)), nn.Linear(8, 8), nn.Linear(8, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.gelu(self.b(F.gelu(self.a(x)))))


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", amount=0.5)


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight norm": nn.utils.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "pruned": pruned,
}
old = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")


@old
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_computed_weight_is_not_offered_and_everything_else_is_exact(kind: str) -> None:
    def build() -> nn.Module:
        return seeded(lambda: Pair(COMPUTED[kind]), dtype=torch.float64)

    outline = outline_model(build())
    assert [site.id for site in outline.sites] == ["a.bias", "b.weight", "b.bias"]
    assert all("computes its `weight` by" in reason for reason in outline.frozen.values())
    allocation = make_allocation(outline, modules={"b.weight": 2}, vectors=["a.bias", "b.bias"])
    tuned = tune(build(), allocation)
    assert not torch.allclose(tuned(FEATURES), build()(FEATURES))
    assert_merged_equals_unmerged(tuned, FEATURES)
    scored = allocate(estimate_sensitivity(build(), [(FEATURES, torch.tensor([0, 1, 2, 0, 1]))]), budget=40, rank=2)
    get_peft_model(build(), SptConfig.from_allocation(scored))


@old
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_lora_on_a_computed_weight_is_refused_by_name(kind: str) -> None:
    model = seeded(lambda: Pair(COMPUTED[kind]))
    names = state_of(model).keys()
    with pytest.raises(ModelError, match=r"`a` cannot be tuned: its \w*Linear computes the weight"):
        get_peft_model(model, SptConfig(target_modules=["b", "a"], r=2))
    assert state_of(model).keys() == names


def test_an_adapter_on_a_layer_that_returns_no_features_is_refused_by_name() -> None:
    class Router(nn.Linear):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.topk(super().forward(x), 2)

    model = nn.Sequential(Router(8, 6))
    tuned = get_peft_model(model, SptConfig(target_modules=["0"], r=2, structured_type="adapter"))
    with pytest.raises(ModelError, match=r"`0.weight` cannot have an Adapter: its Router does not return"):
        tuned(FEATURES.float())


SPEECH = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": (8, 8),
    "conv_stride": (4, 4), "conv_kernel": (8, 8), "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "num_labels": 3, "classifier_proj_size": 8, "layerdrop": 0.0, "num_feat_extract_layers": 2,
    "apply_spec_augment": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (Wav2Vec2ForSequenceClassification, Wav2Vec2Config),
        (HubertForSequenceClassification, HubertConfig),
        (WavLMForSequenceClassification, WavLMConfig),
    ],
)
def test_speech_models_with_a_weight_norm_are_tuned_around_it(kind: type, config: type) -> None:
    waves = {"input_values": torch.randn(2, 400, dtype=torch.float64)}
    model = seeded(lambda: kind(config(**SPEECH)), noise=0.05, dtype=torch.float64)
    assert not [site.id for site in find_sites(model) if "parametrizations" in site.id]
    assert [site.id for site in find_sites(model) if "pos_conv_embed" in site.id]
    assert_merged_equals_unmerged(tune(model, mixed_allocation(model)), waves)


def test_nothing_is_changed_by_an_outline_of_such_models() -> None:
    model = seeded(lambda: Pair(parametrizations.weight_norm))
    with untouched(model):
        outline_model(model)
