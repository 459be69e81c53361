"""PEFT's tests of decoders (OPT, GPT-2, GPT-J, Llama, Qwen2, Gemma 3)."""

from adoption import adopt
from tables import language_cases

globals().update(adopt("test_decoder_models", {"ALL_CONFIGS": language_cases("CAUSAL_LM")}))
