"""q, k and v of a fused projection are the rows that the model reads as such, or the projection stays whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from model_properties import Inputs, output_of
from newer import from_newer, skip_before
from timm.models.gcvit import WindowAttentionGlobal
from timm.models.maxxvit import AttentionCl
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CodeGenConfig,
    CodeGenForCausalLM,
    DbrxConfig,
    DbrxForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MptConfig,
    MptForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Phi3Config,
    Phi3ForCausalLM,
)
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalAudioMLP
from tuned_models import seeded

from sensitune.sites import find_sites

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 16}
VIT = {"img_size": 32, "depth": 2, "embed_dim": 12, "num_heads": 2, "num_classes": 5}
TOKENS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IDS = {"input_ids": torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(0))}
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def dbrx() -> nn.Module:
    attention = {"kv_n_heads": 2, "clip_qkv": 100.0, "rope_theta": 10000.0}
    feed = {"ffn_hidden_size": 24, "moe_num_experts": 2, "moe_top_k": 1}
    config = DbrxConfig(
        d_model=16, n_heads=4, n_layers=2, max_seq_len=16, vocab_size=50, attn_config=attention, ffn_config=feed
    )
    return DbrxForCausalLM(config)


# Family -> (how to build it, what it eats, the rows of q, k and v in the first fused projection)
SLICED: dict[str, tuple[Callable[[], nn.Module], Inputs, dict[str, tuple[int, int]]]] = {
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(**GPT)), IDS, {"q": (0, 16), "k": (16, 32), "v": (32, 48)}),
    "gpt": (lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(**GPT)), IDS, {"q": (0, 16), "k": (16, 32), "v": (32, 48)}),
    "multi-query gpt_bigcode": (
        lambda: GPTBigCodeForCausalLM(GPTBigCodeConfig(**GPT, multi_query=True)),
        IDS, {"q": (0, 16), "k": (16, 20), "v": (20, 24)},
    ),
    "grouped phi3": (
        lambda: Phi3ForCausalLM(Phi3Config(**SIZES, **TOKENS, num_key_value_heads=2)),
        IDS, {"q": (0, 16), "k": (16, 24), "v": (24, 32)},
    ),
    "grouped dbrx": (dbrx, IDS, {"q": (0, 16), "k": (16, 24), "v": (24, 32)}),
    "mpt": (
        lambda: MptForCausalLM(MptConfig(d_model=16, n_heads=4, n_layers=2, max_seq_len=16, vocab_size=50)),
        IDS, {"q": (0, 16), "k": (16, 32), "v": (32, 48)},
    ),
    "modernbert": (
        lambda: ModernBertForMaskedLM(ModernBertConfig(**SIZES, vocab_size=50, pad_token_id=0)),
        IDS, {"q": (0, 16), "k": (16, 32), "v": (32, 48)},
    ),
    "timm vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", **VIT),
        IMAGE, {"q": (0, 12), "k": (12, 24), "v": (24, 36)},
    ),
    "timm differential": (
        lambda: timm.create_model("vit_tiny_patch16_224", **VIT, attn_layer="diff"),
        IMAGE, {"q": (0, 12), "k": (12, 24), "v": (24, 36)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", SLICED)
def test_queries_and_keys_scaled_against_each_other_change_nothing(family: str) -> None:
    make, inputs, rows = SLICED[family]
    if family == "mpt":
        skip_before("transformers", "5.0", "its mask overflows in float64")
    if family == "timm differential":
        skip_before("timm", "1.0.31", "it has no such attention")
    model = seeded(make, noise=0.1, dtype=torch.float64)
    sites = [site for site in find_sites(model) if site.rows and site.operation in {"q", "k", "v"}]
    first = sites[0].parameter
    assert {site.operation: site.rows for site in sites if site.parameter == first} == rows
    before = output_of(model, inputs)
    scale({"q": 2.0, "k": 0.5}, model)
    torch.testing.assert_close(output_of(model, inputs), before)
    scale({"k": 2.0}, model)
    assert not torch.allclose(output_of(model, inputs), before)


def scale(factors: dict[str, float], model: nn.Module) -> None:
    """Multiply what the fused projections give for an operation, weights and biases."""
    with torch.no_grad():
        for site in find_sites(model):
            if site.rows and site.operation in factors:
                site.of(model.get_parameter(site.parameter)).mul_(factors[site.operation])


class Under(nn.Module):
    """One layer by its name in a model that has nothing else."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attn = layer


def rows_of(layer: nn.Module, projection: str) -> dict[str, Any]:
    found = [site for site in find_sites(Under(layer)) if site.parameter == f"attn.{projection}.weight"]
    return {site.operation: site.rows for site in found}


def test_what_gets_its_queries_from_elsewhere_has_keys_and_values_only() -> None:
    attention = seeded(lambda: WindowAttentionGlobal(12, 2, (2, 2), use_global=True), noise=0.1, dtype=torch.float64)
    assert rows_of(attention, "qkv") == {"k": (0, 12), "v": (12, 24)}
    assert rows_of(WindowAttentionGlobal(12, 2, (2, 2), use_global=False), "qkv").keys() == {"q", "k", "v"}
    x, query = torch.randn(2, 4, 12, dtype=torch.float64), torch.randn(1, 4, 12, dtype=torch.float64)
    nn.init.zeros_(attention.proj.bias)
    before = attention(x, query)
    scale({"v": 2.0}, Under(attention))
    torch.testing.assert_close(attention(x, query), 2 * before)


def test_a_vision_tower_with_fewer_keys_than_queries_has_unequal_slices() -> None:
    attention = from_newer("transformers.models.exaone4_5.modeling_exaone4_5", "Exaone4_5_VisionAttention")
    config = type("Config", (), {"hidden_size": 16, "num_heads": 4, "num_key_value_heads": 2})()
    assert rows_of(attention(config), "qkv") == {"q": (0, 16), "k": (16, 24), "v": (24, 32)}


def test_a_feed_forward_that_stores_up_before_gate_is_named_so() -> None:
    config = type(
        "Config", (), {"hidden_size": 8, "intermediate_size": 12, "activation": "silu", "dropout_rate": 0.0}
    )()
    assert rows_of(Phi4MultimodalAudioMLP(config), "gate_up_proj") == {"up": (0, 12), "gate": (12, 24)}


# Family -> (how to build it, the name of its fused projection)
WHOLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "multi-head gpt_bigcode": (lambda: GPTBigCodeForCausalLM(GPTBigCodeConfig(**GPT, multi_query=False)), "c_attn"),
    "codegen": (
        lambda: CodeGenForCausalLM(CodeGenConfig(**GPT | {"n_head": 8}, rotary_dim=2)), "qkv_proj",
    ),
    "gpt_neox": (lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, vocab_size=50)), "query_key_value"),
    "bloom": (
        lambda: BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=2, n_head=4, vocab_size=50)), "query_key_value",
    ),
    "falcon": (
        lambda: FalconForCausalLM(FalconConfig(**SIZES, vocab_size=50, new_decoder_architecture=True, num_kv_heads=2)),
        "query_key_value",
    ),
    "minimax": (
        lambda: MiniMaxForCausalLM(
            MiniMaxConfig(
                **SIZES, **TOKENS, num_key_value_heads=2, num_local_experts=2, layer_types=["linear_attention"] * 2
            )
        ),
        "qkv_proj",
    ),
    "timm maxvit": (lambda: Under(AttentionCl(12, dim_head=4, head_first=True)), "qkv"),
    "timm levit": (
        lambda: timm.create_model("levit_128s", img_size=64, depth=(1, 1, 1), num_classes=5, use_conv=False), "qkv",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", WHOLE)
def test_layouts_that_mix_the_heads_stay_one_matrix(family: str) -> None:
    make, projection = WHOLE[family]
    with torch.device("meta"):
        model = make()
    found = [site for site in find_sites(model) if f".{projection}." in f".{site.parameter}"]
    assert found
    assert not [site.id for site in found if site.rows]


class Handmade(nn.Module):
    """A projection under a known name that is not three times as wide as its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, width)


def test_two_of_three_that_nobody_names_stay_one_matrix() -> None:
    assert rows_of(Handmade(24), "qkv") == {"qkv": None}
    assert rows_of(Handmade(36), "qkv") == {"q": (0, 12), "k": (12, 24), "v": (24, 36)}
