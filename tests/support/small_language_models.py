"""Tiny transformers models with random weights."""

from __future__ import annotations

from typing import Any

from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaConfig, LlamaForCausalLM
from tuned_models import seeded


def tiny_llama() -> LlamaForCausalLM:
    """A causal language model: linear layers without biases, grouped keys and values."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 20}
    return seeded(lambda: LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)))


def tiny_gpt2() -> GPT2ForSequenceClassification:
    """Weights stored ``[in, out]``, a fused q, k, v, and a head."""
    sizes = {"n_embd": 12, "n_layer": 2, "n_head": 2, "vocab_size": 20, "n_positions": 8, "num_labels": 3}
    return seeded(lambda: GPT2ForSequenceClassification(GPT2Config(**sizes, pad_token_id=0)))


def checkpointed(model: Any) -> Any:
    """The model, once it computes its layers again in backward; older releases of transformers name it otherwise."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    return model
