"""PEFT's tests of configuration classes."""

from adoption import adopt
from tables import CONFIG_CASES

from sensitune import SptConfig

_INDEXED = [(config_class, options) for config_class, options in CONFIG_CASES]

# The test's own decorator lists the classes, where no table can be replaced.
_LISTED = {"test_save_pretrained_with_target_modules": [SptConfig]}

globals().update(
    adopt(
        "test_config",
        {"ALL_CONFIG_CLASSES": CONFIG_CASES, "LAYER_INDEXING_CONFIG_CLASSES": _INDEXED},
        single=_LISTED,
    )
)
