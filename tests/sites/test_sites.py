"""Every parameter of a model is a site, always trained, the head, or frozen for a stated reason."""

from __future__ import annotations

import json
import logging
from collections import Counter

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from sensitune._schema import read, to_plain
from sensitune.errors import ArgumentError, ModelError
from sensitune.sites import ModelOutline, Site, find_sites, outline_model

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
LANGUAGE = SIZES | {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tiny_timm_vit(**options: object) -> VisionTransformer:
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=5, **options)


def tiny_model(name: str) -> nn.Module:
    """Each family once, as small as it goes."""
    makers = {
        "timm vit": tiny_timm_vit,
        "timm swin": lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", depths=(1, 2, 1, 1), embed_dim=12, num_heads=(1, 2, 3, 4), num_classes=5
        ),
        "timm convnext": lambda: timm.create_model(
            "convnext_atto", depths=(1, 2, 1, 1), dims=(4, 8, 12, 16), num_classes=5
        ),
        "timm resnet": lambda: timm.create_model("resnet10t", num_classes=5),
        "timm beit": lambda: timm.create_model(
            "beit_base_patch16_224", depth=2, embed_dim=12, num_heads=2, num_classes=5
        ),
        "timm distilled": lambda: timm.create_model(
            "deit_tiny_distilled_patch16_224", depth=2, embed_dim=12, num_heads=2, num_classes=5
        ),
        "transformers vit": lambda: ViTForImageClassification(ViTConfig(**SIZES, num_labels=5)),
        "bert": lambda: BertForSequenceClassification(BertConfig(**SIZES, vocab_size=50)),
        "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZES, vocab_size=50)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, bos_token_id=1, eos_token_id=2)
        ),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**LANGUAGE, num_key_value_heads=2)),
        "phi3": lambda: Phi3ForCausalLM(Phi3Config(**LANGUAGE, num_key_value_heads=2)),
        "t5": lambda: T5ForConditionalGeneration(
            T5Config(d_model=16, num_layers=2, num_heads=2, d_kv=8, d_ff=32, vocab_size=50)
        ),
    }
    return makers[name]()


FAMILIES = [
    "timm vit", "timm swin", "timm convnext", "timm resnet", "timm beit", "timm distilled", "transformers vit",
    "bert", "roberta", "gpt2", "llama", "phi3", "t5",
]  # fmt: skip


def operations(outline: ModelOutline) -> Counter[str]:
    return Counter(site.operation for site in outline.sites if site.kind == "matrix")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_scalar_is_accounted_for_exactly_once(family: str) -> None:
    model = tiny_model(family)
    outline = outline_model(model)
    names = dict(model.named_parameters())
    covered = Counter()
    for site in outline.sites:
        view = site.of(names[site.parameter])
        assert tuple(view.shape) == site.shape
        covered[site.parameter] += view.numel()
    covered.update({name: torch.Size(shape).numel() for name, shape in outline.always_trained.items()})
    covered.update({name: names[name].numel() for name in outline.frozen if name in names})
    assert sum(covered.values()) == outline.backbone_params
    assert all(covered[name] == names[name].numel() for name in covered)
    head = (
        sum(parameter.numel() for name, parameter in names.items() if name.startswith(outline.head))
        if outline.head
        else 0
    )
    assert outline.head_params == head
    assert outline.backbone_params + outline.head_params == sum(parameter.numel() for parameter in names.values())


@pytest.mark.parametrize(
    ("family", "head", "tokens"),
    [
        ("timm vit", ("head",), ["cls_token"]),
        ("timm swin", ("head.fc",), []),
        ("timm convnext", ("head.fc",), []),
        ("timm resnet", ("fc",), []),
        ("timm distilled", ("head", "head_dist"), ["cls_token", "dist_token"]),
        ("transformers vit", ("classifier",), ["vit.embeddings.cls_token"]),
        ("bert", ("classifier",), []),
        ("roberta", ("classifier",), []),
        ("gpt2", (), []),
        ("t5", (), []),
    ],
)
def test_the_head_and_the_tokens_are_known_by_role(family: str, head: tuple[str, ...], tokens: list[str]) -> None:
    outline = outline_model(tiny_model(family))
    assert outline.head == head
    assert list(outline.always_trained) == tokens


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("timm vit", {"q": 2, "k": 2, "v": 2, "proj": 2, "fc1": 2, "fc2": 2}),
        ("timm swin", {"q": 5, "k": 5, "v": 5, "proj": 5, "fc1": 5, "fc2": 5, "reduction": 3}),
        ("timm convnext", {"fc1": 5, "fc2": 5}),
        ("timm beit", {"proj": 2, "fc1": 2, "fc2": 2}),
        ("transformers vit", {"q": 2, "k": 2, "v": 2, "proj": 2, "fc1": 2, "fc2": 2}),
        ("bert", {"q": 2, "k": 2, "v": 2, "proj": 2, "fc1": 2, "fc2": 2, "dense": 1}),
        ("gpt2", {"q": 2, "k": 2, "v": 2, "proj": 2, "fc1": 2, "fc2": 2}),
        ("llama", {"q": 2, "k": 2, "v": 2, "proj": 2, "gate": 2, "up": 2, "down": 2}),
        ("phi3", {"q": 2, "k": 2, "v": 2, "proj": 2, "gate": 2, "up": 2, "down": 2}),
        ("t5", {"q": 6, "k": 6, "v": 6, "proj": 6, "fc1": 4, "fc2": 4}),
    ],
)
def test_matrices_carry_the_fields_operation_names(family: str, expected: dict[str, int]) -> None:
    assert operations(outline_model(tiny_model(family))) == expected


@pytest.mark.parametrize(
    ("family", "blocks"), [("timm vit", 2), ("timm swin", 5), ("timm convnext", 5), ("gpt2", 2), ("t5", 4)]
)
def test_blocks_are_counted_over_the_whole_model(family: str, blocks: int) -> None:
    outline = outline_model(tiny_model(family))
    assert sorted({site.block for site in outline.sites if site.block is not None}) == list(range(blocks))


def test_fused_rows_are_q_k_v_in_order_and_biases_are_sliced_too() -> None:
    sites = {site.id: site for site in find_sites(tiny_timm_vit())}
    assert sites["blocks.1.attn.qkv.weight[k]"].rows == (12, 24)
    assert sites["blocks.1.attn.qkv.bias[v]"] == Site(
        id="blocks.1.attn.qkv.bias[v]",
        parameter="blocks.1.attn.qkv.bias",
        rows=(24, 36),
        kind="vector",
        block=1,
        operation="v",
        shape=(12,),
    )


def test_a_conv1d_slice_is_a_column_range_of_the_stored_weight() -> None:
    site = next(site for site in find_sites(tiny_model("gpt2")) if site.id == "transformer.h.0.attn.c_attn.weight[v]")
    assert (site.transposed, site.rows, site.shape) == (True, (32, 48), (16, 16))
    assert (site.in_features, site.out_features) == (16, 16)


def test_grouped_query_attention_has_unequal_slices() -> None:
    rows = {site.operation: site.rows for site in find_sites(tiny_model("phi3")) if "layers.0.self_attn.qkv" in site.id}
    assert rows == {"q": (0, 16), "k": (16, 24), "v": (24, 32)}


def test_what_the_parent_reads_itself_is_not_a_matrix() -> None:
    kinds = {site.id: site.kind for site in find_sites(tiny_model("timm beit"))}
    assert kinds["blocks.0.attn.qkv.weight[q]"] == "tensor"
    attention = {site.id: site.kind for site in find_sites(nn.TransformerEncoderLayer(8, 2, 16))}
    assert attention["self_attn.out_proj.weight"] == "tensor"
    assert attention["self_attn.in_proj_weight[k]"] == "tensor"
    assert attention["linear1.weight"] == "matrix"


def test_stem_and_position_embedding_are_frozen_with_the_reason_and_include_ranks_them() -> None:
    model = tiny_timm_vit()
    frozen = outline_model(model).frozen
    assert frozen["pos_embed"] == "position embedding"
    assert frozen["patch_embed.proj.weight"] == "stem: part of `patch_embed`"
    included = {site.id for site in find_sites(model, include=["pos_embed", "patch_embed.*"])}
    assert {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"} <= included


def test_token_embeddings_and_the_language_model_head_are_frozen() -> None:
    frozen = outline_model(tiny_model("llama")).frozen
    assert set(frozen) == {"model.embed_tokens.weight", "lm_head.weight"}


def test_excluded_sites_are_left_out_by_site_or_by_parameter() -> None:
    sites = {site.id for site in find_sites(tiny_timm_vit(), exclude=["*.qkv.weight[[]q]", "norm.*"])}
    assert "blocks.0.attn.qkv.weight[q]" not in sites
    assert "blocks.0.attn.qkv.weight[k]" in sites
    assert "norm.weight" not in sites


def test_an_unknown_model_ranks_every_linear_as_a_matrix_and_every_1d_parameter_as_a_vector() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 6)
            self.scale = nn.Parameter(torch.ones(6))
            self.table = nn.Parameter(torch.ones(2, 3))

    kinds = {site.id: site.kind for site in find_sites(Odd())}
    assert kinds == {"scale": "vector", "table": "tensor", "mix.weight": "matrix", "mix.bias": "vector"}


def test_a_tied_weight_is_frozen_under_each_of_its_names_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with caplog.at_level(logging.WARNING, logger="sensitune"):
        outline = outline_model(model)
    assert [site.id for site in outline.sites] == ["0.bias", "1.bias"]
    assert outline.frozen.keys() == {"0.weight", "1.weight"}
    assert "`1.weight` is not ranked: `0.weight` and `1.weight` are one tied parameter." in caplog.text
    assert outline.backbone_params == 24
    with pytest.raises(ArgumentError, match=r"`include` pattern '1.weight' matches no parameter that can be ranked"):
        outline_model(model, include=["1.weight"])


def test_a_layer_that_two_modules_hold_is_one_site() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": nn.ModuleDict({"fc": shared}), "b": nn.ModuleDict({"fc": shared})})
    outline = outline_model(model)
    assert [site.id for site in outline.sites] == ["a.fc.weight", "a.fc.bias"]
    assert (dict(outline.frozen), outline.backbone_params) == ({}, 20)


def test_a_weight_quantised_in_an_unknown_way_is_not_ranked_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with caplog.at_level(logging.WARNING, logger="sensitune"):
        outline = outline_model(model)
    assert "1.weight" in outline.frozen
    assert "stored as torch.int8 by Linear, which is not among the quantised layers that can be read" in caplog.text


def test_a_packed_weight_that_is_a_buffer_is_not_ranked_and_said(caplog: pytest.LogCaptureFixture) -> None:
    class QuantLinear(nn.Module):
        """What GPTQ leaves of a linear layer."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("qweight", torch.zeros(2, 4, dtype=torch.int32))
            self.bias = nn.Parameter(torch.zeros(4))

    with caplog.at_level(logging.WARNING, logger="sensitune"):
        outline = outline_model(nn.Sequential(nn.Linear(4, 4), QuantLinear()))
    assert "`1.qweight` is not ranked: stored in few bits by QuantLinear, which is not among the" in caplog.text
    assert [site.id for site in outline.sites] == ["0.weight", "0.bias", "1.bias"]


def test_a_norm_inside_the_head_is_ranked() -> None:
    model = tiny_timm_vit()
    model.head = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 5))
    outline = outline_model(model)
    assert outline.head == ("head.1",)
    assert {"head.0.weight", "head.0.bias"} <= {site.id for site in outline.sites}


def test_an_outline_survives_its_json_form() -> None:
    outline = outline_model(tiny_model("gpt2"))
    assert read(ModelOutline, json.loads(json.dumps(to_plain(outline)))) == outline


def test_mistakes_are_refused_in_one_sentence() -> None:
    with pytest.raises(ArgumentError, match=r"`include` pattern 'nothing\.\*' matches no parameter"):
        find_sites(tiny_timm_vit(), include=["nothing.*"])
    with pytest.raises(ArgumentError, match="`exclude` pattern 'head' matches no parameter"):
        find_sites(tiny_timm_vit(), exclude=["head"])
    with pytest.raises(ModelError, match="has no parameter that can be ranked"):
        find_sites(nn.ReLU())
    tuned = tiny_timm_vit()
    tuned.peft_config = {}
    with pytest.raises(ModelError, match="already carries a PEFT adapter"):
        find_sites(tuned)


def test_a_fused_projection_can_be_taken_as_the_one_matrix_it_is_stored_as() -> None:
    model = tiny_timm_vit()
    split, stored = outline_model(model), outline_model(model, split_fused=False)
    fused = [site for site in stored.sites if site.parameter.endswith("qkv.weight")]
    assert [(site.id, site.rows, site.shape) for site in fused] == [
        (f"blocks.{block}.attn.qkv.weight", None, (36, 12)) for block in (0, 1)
    ]
    assert sum(site.numel for site in stored.sites) == sum(site.numel for site in split.sites)
