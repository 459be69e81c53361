"""The head is what makes the logits: found by role, checked against size, or named by its exact name."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from newer import from_newer
from peft import LoraConfig, get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import (
    CamembertConfig,
    CamembertForSequenceClassification,
    CLIPConfig,
    CLIPForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PerceiverConfig,
    PerceiverForSequenceClassification,
    T5Config,
    T5ForQuestionAnswering,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    WhisperConfig,
    WhisperForAudioClassification,
    XLNetConfig,
    XLNetForQuestionAnsweringSimple,
)

from sensitune import estimate_sensitivity
from sensitune.errors import ArgumentError, ModelError
from sensitune.sites import find_head, find_sites, name_head, outline_model


def vit(num_classes: int = 5) -> VisionTransformer:
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=num_classes)


def clip() -> CLIPForImageClassification:
    vision = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    return CLIPForImageClassification(CLIPConfig(vision_config=vision, num_labels=3))


def task_model(name: str) -> nn.Module:
    """Task models whose trunk is not called what `base_model_prefix` says, or whose classifier lies deeper."""
    makers = {
        "clip": clip,
        "t5": lambda: T5ForQuestionAnswering(
            T5Config(d_model=16, num_layers=2, num_heads=2, d_kv=8, d_ff=32, vocab_size=50)
        ),
        # its classifier comes before its trunk
        "camembert": lambda: CamembertForSequenceClassification(
            CamembertConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50
            )
        ),
        "xlnet": lambda: XLNetForQuestionAnsweringSimple(
            XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=32, vocab_size=50)
        ),
        "whisper": lambda: WhisperForAudioClassification(
            WhisperConfig(
                d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=50, num_mel_bins=8, classifier_proj_size=8,
                num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            )
        ),
        "pp_lcnet": lambda: from_newer("transformers", "PPLCNetForImageClassification")(
            from_newer("transformers", "PPLCNetConfig")(scale=0.25, class_expand=64, num_labels=3)
        ),
        "distilbert": lambda: DistilBertForSequenceClassification(
            DistilBertConfig(dim=16, hidden_dim=32, n_layers=2, n_heads=2, vocab_size=50, num_labels=3)
        ),
        "perceiver": lambda: PerceiverForSequenceClassification(
            PerceiverConfig(
                num_latents=4, d_latents=16, d_model=16, num_blocks=1, num_self_attends_per_block=2,
                num_self_attention_heads=2, num_cross_attention_heads=2, vocab_size=50, max_position_embeddings=16,
                num_labels=3,
            )
        ),
        "timm wrapper": lambda: TimmWrapperForImageClassification(
            TimmWrapperConfig(architecture="test_vit", num_labels=3)
        ),
    }  # fmt: skip
    return makers[name]()


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("clip", ("classifier",)),
        ("camembert", ("classifier",)),
        ("xlnet", ("qa_outputs",)),
        ("t5", ("qa_outputs",)),
        ("whisper", ("projector", "classifier")),
        ("pp_lcnet", ("head",)),
        ("distilbert", ("pre_classifier", "classifier")),
        ("perceiver", ("perceiver.decoder.decoder.final_layer",)),
        ("timm wrapper", ("timm_model.head",)),
    ],
)
def test_the_trunk_of_a_task_model_is_no_part_of_the_head_whatever_it_is_called(
    name: str, head: tuple[str, ...]
) -> None:
    assert find_head(task_model(name)) == head


def test_the_matrices_of_a_trunk_with_another_name_are_ranked() -> None:
    outline = outline_model(clip())
    assert outline.head_params == 16 * 3 + 3
    assert sum(site.kind == "matrix" for site in outline.sites) == 12


class Net(nn.Module):
    """A user's own model around others."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (lambda: Net(model=vit()), ("model.head",)),
        (lambda: Net(net=Net(model=vit())), ("net.model.head",)),
        (lambda: nn.Sequential(nn.Identity(), vit()), ("1.head",)),
        (lambda: Net(model=clip(), loss=nn.Linear(2, 2)), ("model.classifier",)),
        (lambda: Net(backbone=vit(0), classifier=nn.Linear(12, 3)), ("classifier",)),
        (
            lambda: Net(backbone=vit(0), head=nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 4), nn.Linear(4, 3))),
            ("head.1", "head.2"),
        ),
        (lambda: Net(body=nn.Linear(40, 40), fc=nn.Linear(40, 3)), ("fc",)),
        (
            lambda: Net(features=nn.Linear(40, 40), classifier=nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 3))),
            ("classifier.1",),
        ),
        (lambda: Net(first=nn.Linear(40, 40), last=nn.Linear(40, 3)), ()),
        (lambda: Net(fc=nn.Linear(40, 3), body=nn.Linear(40, 40)), ()),
        (lambda: Net(body=nn.Linear(4, 4), fc=nn.Linear(4, 4)), ()),
        (lambda: vit(0), ()),
    ],
)
def test_the_head_of_a_model_inside_another_is_found(make: object, head: tuple[str, ...]) -> None:
    assert find_head(make()) == head  # type: ignore[operator]


def test_several_models_with_heads_of_their_own_are_refused_until_one_is_named() -> None:
    model = Net(student=vit(), teacher=vit())
    with pytest.raises(ModelError, match=r"Net holds several models .* student.head, teacher.head. Say with `head`"):
        find_sites(model)
    assert outline_model(model, head="student.head").head == ("student.head",)


def test_a_head_that_holds_much_of_the_model_is_refused_until_it_is_named() -> None:
    model = vit()
    model.head = nn.Sequential(nn.Linear(12, 60), nn.ReLU(), nn.Linear(60, 5))
    with pytest.raises(
        ModelError,
        match=r"looks like the head of VisionTransformer \(head\) holds 780 parameters before the layer .*, 11% of the",
    ):
        outline_model(model)
    assert outline_model(model, head="head").head_params == 780 + 305
    assert outline_model(model, head=["head.2"]).head_params == 305


def test_a_head_that_peft_keeps_twice_counts_once() -> None:
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=200)
    tuned = get_peft_model(model, LoraConfig(r=1, target_modules=["qkv"], modules_to_save=["head"]))
    head = model.get_submodule("head")
    assert sum(each.numel() for each in head.parameters()) > 0.1 * sum(each.numel() for each in tuned.parameters())
    assert find_head(tuned.get_base_model()) == ("head",)


def test_a_wide_layer_of_logits_is_no_reason_to_doubt() -> None:
    outline = outline_model(vit(1000))
    assert outline.head == ("head",)
    assert outline.head_params > outline.backbone_params


def test_a_named_head_is_taken_whole_and_an_empty_one_means_none() -> None:
    model = vit()
    named = outline_model(model, head=("norm", "head"))
    assert (named.head, named.head_params) == (("norm", "head"), 24 + 65)
    assert not {"norm.weight", "head.weight"} & {site.id for site in named.sites}
    assert "head.weight" in {site.id for site in find_sites(model, head=())}
    assert {site.id for site in find_sites(model, head="norm")} == {site.id for site in named.sites} - {
        "norm.weight"
    } | {"head.weight", "head.bias"}


def test_a_noted_head_is_found_by_everything_and_copied_with_the_model() -> None:
    model = vit()
    name_head(model, "blocks.1.mlp")
    assert find_head(copy.deepcopy(model)) == outline_model(model).head == ("blocks.1.mlp",)
    assert find_head(Net(model=model)) == ("model.blocks.1.mlp",)
    assert find_head(model, "head") == ("head",)


def test_the_scores_are_taken_with_the_head_that_is_named() -> None:
    batch = (torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))
    model = vit()
    named = estimate_sensitivity(model, [batch], head=("norm", "head"))
    assert named.outline.head == ("norm", "head")
    assert "norm.weight" not in named.scores
    of_outline = estimate_sensitivity(model, [batch], sites=outline_model(model, head=("norm", "head")))
    assert of_outline.outline == named.outline
    with pytest.raises(ArgumentError, match="`head` is 'norm', but the outline given as `sites` has the head head"):
        estimate_sensitivity(model, [batch], sites=outline_model(model), head="norm")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("haed", "`head` names 'haed', which is no module of VisionTransformer.* blocks, norm, head"),
        ("", "`head` names '', which is no module"),
        ("norm_pre", "`head` names 'norm_pre', which has no parameters"),
        (("head", "head"), "`head` names 'head' twice"),
        (("blocks", "blocks.0"), "`head` names 'blocks.0' twice, itself or within another"),
    ],
)
def test_a_name_that_is_no_head_is_refused(head: str | tuple[str, ...], message: str) -> None:
    for refused in (lambda: find_head(vit(), head), lambda: name_head(vit(), head)):
        with pytest.raises(ArgumentError, match=message):
            refused()


def test_timms_models_say_their_head_themselves_also_where_the_description_is_of_another() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    model.pretrained_cfg = {"classifier": "missing"}
    assert find_head(model) == ("head",)
