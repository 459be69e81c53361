"""PEFT's tests of sequence classifiers (BERT, RoBERTa, Llama)."""

from adoption import adopt
from tables import language_cases

globals().update(adopt("test_seq_classifier", {"ALL_CONFIGS": language_cases("SEQ_CLS")}))
