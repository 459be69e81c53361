"""The configurations of SPT that PEFT's own tests are run with, in the shape of PEFT's tables."""

from __future__ import annotations

from typing import Any

import pytest

from sensitune import SptConfig

# One entry per way to tune; `num_sparse` is below the size of every target, so that the sites stay sparse.
SPARSE: dict[str, Any] = {"r": 0, "num_sparse": 4}
LORA: dict[str, Any] = {"r": 4}
ADAPTER: dict[str, Any] = {"r": 4, "structured_type": "adapter"}
FORMS = {"sparse": SPARSE, "LoRA": LORA, "Adapter": ADAPTER}

_MLP = {
    "1": {"target_modules": "lin0"},
    "2": {"target_modules": ["lin1"]},
    "3": {"target_modules": ["lin0", "lin1"]},
    "4": {"target_modules": ["lin0"], "modules_to_save": ["lin1"]},
    "5": {"target_modules": ["lin0", "lin1"], "exclude_modules": ["lin1"]},
}
_TARGETS = {
    ("MLP", name): options for name, options in _MLP.items()
} | {
    ("EmbConv1D", "1"): {"target_modules": ["conv1d"]},
    ("EmbConv1D", "2"): {"target_modules": ["conv1d", "lin0"]},
    ("Conv1d", "1"): {"target_modules": ["conv1d"]},
    ("Conv2d", "1"): {"target_modules": ["conv2d"]},
    ("Conv2d", "2"): {"target_modules": ["conv2d", "lin0"]},
    ("Conv2dGroups2", "1"): {"target_modules": ["conv2d"]},
    ("Conv3d", "1"): {"target_modules": ["conv3d", "lin0"]},
}  # fmt: skip
_SPARSE_ONLY = {
    ("EmbConv1D", "embedding"): {"target_modules": ["emb", "conv1d"], "num_sparse": 3},
    ("MLP_LayerNorm", "norm"): {"target_modules": ["layernorm0", "lin0"], "num_sparse": 60},
    ("MLP_LayerNorm", "whole norm"): {"target_modules": ["layernorm1"], "num_sparse": 1000},
    ("MHA", "attention"): {"target_modules": ["out_proj"]},
    ("MHA", "attention and head"): {"target_modules": ["out_proj", "lin0"], "rank_pattern": {"lin0": 2}},
}
_MIXED = {
    "LoRA then sparse": {"r": 3, "rank_pattern": {"lin1": 0}, "num_sparse": 5},
    "sparse then LoRA": {"r": 0, "rank_pattern": {"lin1": 2}, "sparse_pattern": {"lin0": 7}},
    "LoRA of two ranks": {"r": 3, "rank_pattern": {"lin1": 1}},
    "two numbers of entries": {"r": 0, "num_sparse": 20, "sparse_pattern": {"lin1": 3}},
    "whole and sparse": {"r": 0, "num_sparse": 20, "sparse_pattern": {"lin1": 1000}},
    "Adapter then sparse": ADAPTER | {"rank_pattern": {"lin1": 0}, "num_sparse": 5},
}

CUSTOM_CASES = [
    *((f"{model} {name} {form}", model, SptConfig, targets | options)
      for (model, name), targets in _TARGETS.items() for form, options in FORMS.items()),
    *((f"{model} {name} sparse", model, SptConfig, SPARSE | targets)
      for (model, name), targets in _SPARSE_ONLY.items()),
    *((f"MLP {name}", "MLP", SptConfig, {"target_modules": ["lin0", "lin1"]} | mixed)
      for name, mixed in _MIXED.items()),
    ("Conv2d LoRA then sparse", "Conv2d", SptConfig,
     {"target_modules": ["conv2d", "lin0"], "rank_pattern": {"lin0": 0}, "num_sparse": 5}),
    ("Conv2dGroups 1 sparse", "Conv2dGroups", SptConfig, {"target_modules": ["conv2d"]} | SPARSE),
    ("Conv1dGroups 1 LoRA", "Conv1dGroups", SptConfig, {"target_modules": ["conv1d"]} | LORA),
]  # fmt: skip

_RANDOM: dict[str, Any] = {"init_weights": False}
# (name, method, config class, first adapter, second adapter)
TWO_ADAPTERS = [
    *((f"{first} {where} as {second}", "spt", SptConfig,
       {"target_modules": ["lin0"]} | _RANDOM | FORMS[first], {"target_modules": [target]} | _RANDOM | FORMS[second])
      for first, second in (
          ("sparse", "sparse"), ("LoRA", "LoRA"), ("sparse", "LoRA"), ("LoRA", "sparse"), ("Adapter", "Adapter"))
      for where, target in (("same layer", "lin0"), ("another layer", "lin1"))),
]  # fmt: skip


def language_cases(task_type: str) -> list[Any]:
    """The three forms on an architecture's default target modules; the values start as the identity, as PEFT asks."""
    return [
        pytest.param(SptConfig, {"task_type": task_type, "target_modules": None} | options, id=f"{form}-")
        for form, options in FORMS.items()
    ]


CONFIG_CASES = ((SptConfig, {}), *((SptConfig, dict(options)) for options in FORMS.values()))

_RESNET: dict[str, Any] = {"target_modules": ["convolution"], "modules_to_save": ["classifier", "normalization"]}
BATCHNORM_CASES = {form: SptConfig(**_RESNET, **options) for form, options in FORMS.items()}
