"""Tiny random models under the names of the hub models that PEFT's tests load: a relative path needs no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig
from PIL import Image

_VOCABULARY = 64
_SMALL = {"vocab_size": _VOCABULARY, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
_ENCODER = _SMALL | {"intermediate_size": 32, "max_position_embeddings": 64}
_DECODER = _ENCODER | {"num_key_value_heads": 2}
_OPT = _SMALL | {"ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 64}
_GPT = {"vocab_size": _VOCABULARY, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64}
_T5 = {
    "vocab_size": _VOCABULARY,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_BART = {
    "vocab_size": _VOCABULARY, "d_model": 16, "encoder_layers": 3, "decoder_layers": 3, "max_position_embeddings": 64,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}
_GENERATING = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# Folder -> (model class, its settings). The settings are passed to the model's own configuration class.
_MODELS = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", _OPT | _GENERATING),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", _GPT | _GENERATING),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", _GPT | {"rotary_dim": 4} | _GENERATING),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", _DECODER | _GENERATING),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", _DECODER | _GENERATING),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": (
        "Gemma3ForCausalLM",
        _DECODER | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("T5ForConditionalGeneration", _T5),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", _BART),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": ("BertForSequenceClassification", _ENCODER),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification",
        _ENCODER,
    ),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (
        "LlamaForSequenceClassification",
        _DECODER | {"num_labels": 1, "pad_token_id": 0},
    ),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", _ENCODER),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", _ENCODER),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", _ENCODER),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", _ENCODER),
    "peft-internal-testing/tiny-random-ResNetForImageClassification": ("ResNetForImageClassification", _RESNET),
}


def write_tiny_models(folder: Path) -> None:
    """Save every model, the image and the adapter that the tests name, below `folder`."""
    for name, (class_name, settings) in _MODELS.items():
        model_class = getattr(transformers, class_name)
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**settings))
        for parameter in model.parameters():  # random weights of size 0.02 would hide every difference
            if parameter.dim() > 1:
                parameter.data.mul_(5.0)
        model.save_pretrained(folder / name)
    resnet = folder / "peft-internal-testing/tiny-random-ResNetForImageClassification"
    transformers.ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(resnet)
    LoraConfig(base_model_name_or_path="opt").save_pretrained(folder / "peft-internal-testing/tiny-opt-lora-revision")
    image = folder / "huggingface/cats-image/test/cat.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
