"""Whose model it is does not matter: of every architecture the head is found and most of the rest can be ranked.

Models are built on the meta device, with the parameters' shapes alone: timm's as they are, those of transformers from
their default configurations with six layers and few words.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import transformers
from newer import without_values
from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from sensitune.errors import SensituneError
from sensitune.sites import outline_model

LABELS = 7
TASKS = (
    "IMAGE_CLASSIFICATION", "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "AUDIO_CLASSIFICATION",
    "QUESTION_ANSWERING", "CAUSAL_LM", "MASKED_LM",
)  # fmt: skip
WITHOUT_HEAD = {"CAUSAL_LM", "MASKED_LM"}  # their last layer is pretrained

# Name -> why it cannot be as the others are.
TIMM_EXCEPTIONS = dict.fromkeys(
    [
        "deepseek_vit_412m_enc",
        "gemma4_vit_167m_enc", "gemma4_vit_570m_enc", "mobilenetv5_300m_enc", "qwen3_vit_88m_enc",
        "qwen3_vit_306m_enc", "qwen3_vit_416m_enc",
    ],
    "an encoder that takes no classifier",
)  # fmt: skip
TRANSFORMERS_EXCEPTIONS = {
    "ShieldGemma2ForImageClassification": "its classes are two words of a pretrained language model",
}
# Classes that this file cannot build, and why.
NOT_BUILT = {
    **dict.fromkeys(["DinatForImageClassification"], "needs the package natten"),
    **dict.fromkeys(
        ["LayoutLMv2ForQuestionAnswering", "LayoutLMv2ForSequenceClassification", "LayoutLMv2ForTokenClassification"],
        "needs the package detectron2",
    ),
    **dict.fromkeys(
        [
            "CohereCompassForCausalLM", "CohereCompassTextForSequenceClassification", "DbrxForCausalLM",
            "Dots1ForCausalLM", "Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM",
            "Lfm2MoeForCausalLM", "PerceiverForImageClassificationConvProcessing",
            "PerceiverForImageClassificationFourier", "Qwen4ExpForCausalLM", "ReformerModelWithLMHead",
        ],
        "its default configuration builds no model",
    ),
}  # fmt: skip


def mistake(model: nn.Module, *, has_head: bool) -> str | None:
    """What is wrong with a model's outline, or None."""
    try:
        outline = outline_model(model)
    except SensituneError as error:
        return str(error)
    if bool(outline.head) != has_head:
        return f"head {outline.head}"
    if outline.head_params > 0.1 * (outline.head_params + outline.backbone_params):
        return f"head of {outline.head_params:,} parameters: {outline.head}"
    ranked = sum(site.numel for site in outline.sites) / outline.backbone_params
    return f"{ranked:.0%} ranked" if ranked < 0.5 else None


def timm_model(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return without_values(lambda: timm.create_model(name, num_classes=LABELS))


def transformers_model(name: str, labels: int) -> nn.Module:
    cls = getattr(transformers, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = cls.config_class()
        shrink(config, labels)
        with torch.device("meta"):
            try:
                return cls(config)
            except (ValueError, IndexError):  # layers that must be as many as another setting says
                config = cls.config_class()
                config.num_labels = labels
                return cls(config)


def shrink(config: Any, labels: int) -> None:
    """Six layers, few words; what is left open in a default configuration is filled in."""
    config.num_labels = labels
    sizes = {"layer": 6, "layers": 6, "experts": 4, "vocab_size": 120}
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            shrink(value, labels)
        elif type(value) is int:
            most = next((size for end, size in sizes.items() if name.endswith(end)), value)
            is_word = name.endswith("token_id") and value >= sizes["vocab_size"]
            setattr(config, name, 1 if is_word else min(value, most))
        elif isinstance(value, list) and name.endswith("layer_types") and len(value) > 6:
            setattr(config, name, value[:6])
    set_ = vars(config)  # not `getattr`: what differs from layer to layer refuses to be asked for
    heads = set_.get("num_attention_heads")
    if set_.get("num_key_value_heads", 0) is None:
        config.num_key_value_heads = heads
    if set_.get("head_dim", 0) is None and isinstance(heads, int):
        config.head_dim = set_["hidden_size"] // heads
    if set_.get("vocab_size", 0) is None:
        config.vocab_size = sizes["vocab_size"]


def classes(task: str) -> list[str]:
    names: Any = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").values()
    every = [name for each in names for name in (each if isinstance(each, tuple) else (each,))]
    return sorted(set(every) - NOT_BUILT.keys())


def mistakes_of(task: str, names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        labels = 2 if task == "QUESTION_ANSWERING" else LABELS
        found = mistake(transformers_model(name, labels), has_head=task not in WITHOUT_HEAD)
        if found is not None:
            yield name, found


def families() -> list[str]:
    return sorted({timm.models.model_entrypoint(name).__module__.rpartition(".")[2] for name in timm.list_models()})


@pytest.mark.parametrize(
    "name",
    [
        "test_vit2",
        "test_resnet",
        "test_efficientnet_ln",
        "test_nfnet",
        "hgnetv2_b0",
        "levit_128s",
        "vit_tiny_r_s16_p8_224",
    ],
)
def test_a_model_of_timm_has_a_head_and_much_to_rank(name: str) -> None:
    assert mistake(timm_model(name), has_head=True) is None


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("IMAGE_CLASSIFICATION", "HGNetV2ForImageClassification"),
        ("SEQUENCE_CLASSIFICATION", "XLMRobertaForSequenceClassification"),
        ("TOKEN_CLASSIFICATION", "Qwen2ForTokenClassification"),
        ("AUDIO_CLASSIFICATION", "Wav2Vec2ForSequenceClassification"),
        ("QUESTION_ANSWERING", "BartForQuestionAnswering"),
        ("CAUSAL_LM", "Qwen2ForCausalLM"),
        ("MASKED_LM", "ModernBertForMaskedLM"),
    ],
)
def test_a_model_of_transformers_has_a_head_if_its_task_does_and_much_to_rank(task: str, name: str) -> None:
    assert list(mistakes_of(task, [name])) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", families())
def test_every_model_of_timm_has_a_head_and_much_to_rank(family: str) -> None:
    names = timm.list_models(module=family)
    found = {name: said for name in names if (said := mistake(timm_model(name), has_head=True)) is not None}
    assert found.keys() == TIMM_EXCEPTIONS.keys() & set(names), found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", TASKS)
def test_every_model_of_transformers_has_a_head_if_its_task_does_and_much_to_rank(task: str) -> None:
    names = classes(task)
    found = dict(mistakes_of(task, names))
    assert found.keys() == TRANSFORMERS_EXCEPTIONS.keys() & set(names), found
