"""From sensitivity to merge on every family of models: each step exact in float64 against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from dense_reference import assert_gradients_follow, write_dense
from model_properties import assert_merged_equals_unmerged, assert_unmerging_restores, untouched
from newer import checkpoint_activations
from peft import get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from tuned_models import count_trained, gradients_of, seeded, tune

from sensitune.allocation import Allocation, allocate
from sensitune.errors import ArgumentError, ModelError
from sensitune.sensitivity import estimate_sensitivity
from sensitune.sites import outline_model
from sensitune.tuner import SptConfig
from sensitune.tuner._plan import SitePlan

# PEFT 0.21.2 asks transformers 5 for a property that it renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
LANGUAGE = SIZES | {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": 50,
    "n_positions": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 24, "vocab_size": 50}
MAMBA = {"num_hidden_layers": 1, "state_size": 4, "time_step_rank": 4, "use_mambapy": False}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 5}
BEIT = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 5}


class Encoder(nn.Module):
    """torch's own encoder layer, whose attention reads its projections' weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(12, 2, 16, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(12, 5)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **options)


# Family -> (how to build it, what it eats, the operations of its matrices, operations that are sparse only)
FAMILIES: dict[str, tuple[Callable[[], nn.Module], str, set[str], set[str]]] = {
    "timm vit": (
        lambda: VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=5),
        "image", {"q", "k", "v", "proj", "fc1", "fc2"}, set(),
    ),
    "transformers vit": (
        lambda: ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=5)),
        "pixels", {"q", "k", "v", "proj", "fc1", "fc2"}, set(),
    ),
    "bert": (
        lambda: BertForSequenceClassification(BertConfig(**SIZES, vocab_size=50, num_labels=5)),
        "text", {"q", "k", "v", "proj", "fc1", "fc2", "dense"}, set(),
    ),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(**GPT2)), "language", {"q", "k", "v", "proj", "fc1", "fc2"}, set()),
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**LANGUAGE, num_key_value_heads=2)),
        "language", {"q", "k", "v", "proj", "gate", "up", "down"}, set(),
    ),
    "qwen2": (
        lambda: Qwen2ForCausalLM(Qwen2Config(**LANGUAGE, num_key_value_heads=2, tie_word_embeddings=True)),
        "language", {"q", "k", "v", "proj", "gate", "up", "down"}, set(),
    ),
    "phi3": (
        lambda: Phi3ForCausalLM(Phi3Config(**LANGUAGE, num_key_value_heads=2)),
        "language", {"q", "k", "v", "proj", "gate", "up", "down"}, set(),
    ),
    "t5": (
        lambda: T5ForConditionalGeneration(T5Config(**T5, decoder_start_token_id=0)),
        "language", {"q", "k", "v", "proj", "fc1", "fc2"}, set(),
    ),
    "timm beit": (timm_model("beit_base_patch16_224", **BEIT), "image", {"proj", "fc1", "fc2"}, {"q", "k", "v"}),
    "timm eva": (timm_model("eva02_tiny_patch14_224", **BEIT), "image", {"proj", "fc2"}, set()),
    "timm eva, fused": (timm_model("eva_giant_patch14_224", **BEIT), "image", {"proj", "fc1", "fc2"}, {"q", "k", "v"}),
    "timm swin v2": (
        timm_model("swinv2_tiny_window8_256", **SWIN), "wide image", {"proj", "fc1", "fc2"}, {"q", "k", "v"},
    ),
    "torchvision swin": (
        lambda: SwinTransformer([4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=5, stochastic_depth_prob=0.0),
        "wide image", {"q", "k", "v", "proj"}, set(),
    ),
    "torchvision swin v2": (
        lambda: SwinTransformer(
            [4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=5, stochastic_depth_prob=0.0,
            block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2,
        ),
        "wide image", {"q", "k", "v", "proj"}, set(),
    ),
    "mamba": (
        lambda: MambaForCausalLM(MambaConfig(**LANGUAGE | MAMBA)), "language", {"in_proj", "proj"}, {"dt_proj"},
    ),
    "torch encoder": (Encoder, "vectors", {"fc1", "fc2"}, {"q", "k", "v", "proj"}),
}  # fmt: skip


def batch_for(kind: str) -> Any:
    """Four examples of what a family eats, in float64, with labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4)
    tokens = torch.randint(3, 50, (4, 7), generator=generator)
    size = 32 if kind == "wide image" else 16
    images = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64)
    batches: dict[str, Any] = {
        "image": (images, labels),
        "wide image": (images, labels),
        "vectors": (torch.randn(4, 6, 12, generator=generator, dtype=torch.float64), labels),
        "pixels": {"pixel_values": images, "labels": labels},
        "text": {"input_ids": tokens, "labels": labels},
        "language": {"input_ids": tokens, "labels": tokens},
    }
    return batches[kind]


def build(family: str) -> nn.Module:
    return seeded(FAMILIES[family][0], noise=0.1, dtype=torch.float64)


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    if isinstance(batch, dict):
        return model(**batch).loss
    return F.cross_entropy(model(batch[0]), batch[1])


def allocation_for(family: str, tau: int = 400) -> Allocation:
    sensitivity = estimate_sensitivity(build(family), [batch_for(FAMILIES[family][1])], num_batches=1)
    return allocate(sensitivity, tau=tau, structured="lora", rank=2, alpha=30.0, beta=5.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_is_a_site_of_its_own(family: str) -> None:
    _, _, matrices, sparse_only = FAMILIES[family]
    sites = outline_model(build(family)).sites
    assert {site.operation for site in sites if site.kind == "matrix"} >= matrices
    assert {site.operation for site in sites if site.kind == "tensor"} >= sparse_only
    assert not sparse_only & {site.operation for site in sites if site.kind == "matrix"}


def test_a_bias_that_its_parent_sets_to_zero_in_every_forward_is_not_offered() -> None:
    outline = outline_model(build("torchvision swin v2"))
    biases = {site.operation for site in outline.sites if site.parameter.endswith("qkv.bias")}
    assert biases == {"q", "v"}
    assert {name for name, reason in outline.frozen.items() if reason.startswith("set to zero by its parent")} == {
        f"features.{stage}.0.attn.qkv.bias[k]" for stage in (1, 3)
    }


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_grouped_query_attention_has_smaller_keys_and_values(family: str) -> None:
    shapes = {site.operation: site.shape for site in outline_model(build(family)).sites if site.kind == "matrix"}
    assert (shapes["q"], shapes["k"], shapes["v"]) == ((16, 16), (8, 16), (8, 16))


@pytest.mark.parametrize("family", FAMILIES)
def test_from_sensitivity_to_merge_everything_is_exact(family: str) -> None:
    batch = batch_for(FAMILIES[family][1])
    allocation = allocation_for(family)
    model, plain = tune(build(family), allocation), build(family).requires_grad_(True)
    assert count_trained(model) == allocation.trainable_params + allocation.head_params
    write_dense(plain, model, allocation)
    losses = [loss_of(each, batch) for each in (model, plain)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    assert_gradients_follow(model, plain, allocation)
    inputs = batch if isinstance(batch, dict) else batch[0]
    assert_unmerging_restores(model, inputs)
    merged = assert_merged_equals_unmerged(model, inputs)
    torch.testing.assert_close(dict(merged.named_parameters()), dict(plain.named_parameters()), check_stride=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_module_trains_where_a_lora_would(family: str) -> None:
    batch = batch_for(FAMILIES[family][1])
    sensitivity = estimate_sensitivity(build(family), [batch], num_batches=1)
    allocation = allocate(sensitivity, tau=400, structured="adapter", rank=2, alpha=30.0)
    model = tune(build(family), allocation).train()
    assert allocation.structured
    assert gradients_of(model, lambda: loss_of(model, batch))  # also: no layer is left uncalled


@pytest.mark.parametrize("family", ["bert", "llama", "timm vit"])
def test_gradient_checkpointing_does_not_change_the_gradients(family: str) -> None:
    batch = batch_for(FAMILIES[family][1])
    model = tune(build(family), allocation_for(family))

    def gradients() -> dict[str, torch.Tensor]:
        return gradients_of(model, lambda: loss_of(model, batch))

    plain = gradients()
    model.train()
    for module in model.modules():  # checkpointing needs training mode, dropout would blur the comparison
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):  # BERT's attention in older releases of transformers
            module.dropout_prob = 0.0
    for _, layer in model.base_model._layers():
        layer.options = {name: type(options)(0.0, 0.0) for name, options in layer.options.items()}
    inner = model.base_model.model
    if family == "timm vit":
        inner.set_grad_checkpointing(True)
    else:
        inner.config.attention_dropout = 0.0
        checkpoint_activations(inner)
    torch.testing.assert_close(gradients(), plain)


# -- what cannot be tuned ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "layer"), [("timm beit", "qkv"), ("timm swin v2", "qkv"), ("torch encoder", "out_proj")]
)
def test_a_lora_on_a_weight_that_its_parent_reads_is_refused_and_nothing_changes(family: str, layer: str) -> None:
    base = build(family)
    with untouched(base), pytest.raises(ModelError, match="reads the weight itself and never calls the layer"):
        get_peft_model(base, SptConfig(target_modules=["fc1", "linear1", layer], r=2))


def test_a_tied_embedding_is_frozen_by_default_and_tuning_it_is_refused() -> None:
    model = build("gpt2")
    assert "transformer.wte.weight" not in {site.id for site in outline_model(model).sites}
    with pytest.raises(
        ArgumentError, match=r"pattern 'transformer.wte.weight' matches no parameter that can be ranked"
    ):
        outline_model(model, include=["transformer.wte.weight"])
    with untouched(model), pytest.raises(ModelError, match=r"`transformer.wte.weight` is tied to `lm_head.weight`"):
        get_peft_model(model, SptConfig(target_modules=["c_fc", "wte"], r=0))
    plan = SitePlan(parameter="transformer.wte.weight", form="whole", size=800, shape=(50, 16))
    with untouched(model), pytest.raises(ModelError, match=r"`transformer.wte.weight` is tied to `lm_head.weight`"):
        get_peft_model(model, SptConfig().with_plans({plan.parameter: plan}, {}))
