"""PEFT's tests of hand-written models: linear layers, convolutions, embeddings, attention; one and several adapters."""

from adoption import adopt
from tables import CUSTOM_CASES, TWO_ADAPTERS

from sensitune import SptConfig

_ONE_CLASS = (
    "test_multiple_adapters_mixed_modules_to_save",
    "test_multiple_adapters_mixed_modules_to_save_order_switched",
    "test_default_target_modules_not_set_raises",
    "test_default_target_modules_not_set_model_type_set_raises",
    "test_default_target_modules_list_of_str",
    "test_default_target_modules_str",
)

globals().update(
    adopt(
        "test_custom_models",
        {
            "TEST_CASES": CUSTOM_CASES,
            "ALL_PEFT_CONFIG_CLASSES": [SptConfig],
            "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": TWO_ADAPTERS,
        },
        single={name: [SptConfig] for name in _ONE_CLASS},
    )
)
