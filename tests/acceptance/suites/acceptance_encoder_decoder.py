"""PEFT's tests of encoder-decoders (T5, BART)."""

from adoption import adopt
from tables import language_cases

globals().update(adopt("test_encoder_decoder_models", {"ALL_CONFIGS": language_cases("SEQ_2_SEQ_LM")}))
