"""PEFT's tests of configuration classes."""

from adoption import adopt
from tables import CONFIG_CASES

_INDEXED = [(config_class, options) for config_class, options in CONFIG_CASES]

globals().update(adopt("test_config", {"ALL_CONFIG_CLASSES": CONFIG_CASES, "LAYER_INDEXING_CONFIG_CLASSES": _INDEXED}))
