"""PEFT's tests of feature extractors (BERT, RoBERTa, DeBERTa v1 and v2)."""

from adoption import adopt
from tables import language_cases

globals().update(adopt("test_feature_extraction_models", {"ALL_CONFIGS": language_cases("FEATURE_EXTRACTION")}))
