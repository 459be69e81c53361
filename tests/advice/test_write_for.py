"""What is written for a trainer says the same as the plan."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml
from advised import of, scores
from peft import LoraConfig

from sensitune.advice import advise, write_for
from sensitune.advice._write import TRAINERS
from sensitune.errors import ArgumentError

PEAKED = [1, 1, 9, 1, 1, 8, 1, 1]


def test_the_configuration_for_peft_is_the_plans(tmp_path: Path) -> None:
    advice = of(PEAKED)
    (path,) = write_for("peft", advice, tmp_path, model="mine")
    read = LoraConfig.from_pretrained(str(path.parent))
    assert (set(read.target_modules or ()), read.r, read.rank_pattern) == ({"body.2", "body.5"}, 4, {})
    assert read.base_model_name_or_path == "mine"


def test_the_script_for_trl_hands_that_configuration_on(tmp_path: Path) -> None:
    config, script = write_for("trl", of(PEAKED), tmp_path, model="mine")
    assert config.name == "adapter_config.json"
    calls = (node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call))
    (call,) = (call for call in calls if ast.unparse(call.func) == "LoraConfig.from_pretrained")
    loaded = [ast.literal_eval(call.args[0])]
    assert loaded == [str(tmp_path)]


def test_axolotl_gets_its_keys(tmp_path: Path) -> None:
    (path,) = write_for("axolotl", of(PEAKED), tmp_path, model="mine")
    assert yaml.safe_load(path.read_text()) == {
        "base_model": "mine", "adapter": "lora", "lora_r": 4, "lora_alpha": 4,
        "lora_target_modules": ["body.2", "body.5"], "lora_modules_to_save": ["head"],
    }  # fmt: skip


def test_llama_factory_gets_its_keys(tmp_path: Path) -> None:
    (path,) = write_for("llama-factory", of(PEAKED), tmp_path, model="mine")
    assert yaml.safe_load(path.read_text()) == {
        "model_name_or_path": "mine", "finetuning_type": "lora", "lora_rank": 4, "lora_alpha": 4,
        "lora_target": "body.2,body.5", "additional_target": "head",
    }  # fmt: skip


def test_a_trainer_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=f"must be one of {', '.join(TRAINERS)}"):
        write_for("unsloth", of(PEAKED), tmp_path, model="mine")  # type: ignore[arg-type]


def test_ranks_of_their_own_are_axolotls_patterns_and_nothing_for_llama_factory(tmp_path: Path) -> None:
    advice = advise(scores([1, 1, 9, 1, 1, 4, 1, 1], [1, 1, 9, 1, 1, 4, 1, 1]), budget=700)
    assert len(set(advice.plan.ranks.values())) > 1
    (path,) = write_for("axolotl", advice, tmp_path, model="mine")
    values = yaml.safe_load(path.read_text())
    assert {values["lora_r"], *values["lora_rank_pattern"].values()} == set(advice.plan.ranks.values())
    assert values["lora_alpha_pattern"] == values["lora_rank_pattern"]
    with pytest.raises(ArgumentError, match="llama-factory knows one rank for all modules"):
        write_for("llama-factory", advice, tmp_path, model="mine")


def test_names_that_need_an_expression_are_refused_where_only_names_are_taken(tmp_path: Path) -> None:
    advice = of(PEAKED)
    advice.plan.config.target_modules = r"body\.2|body\.5"
    with pytest.raises(ArgumentError, match="llama-factory takes names of modules alone"):
        write_for("llama-factory", advice, tmp_path / "out", model="mine")
    assert not (tmp_path / "out").exists()
    (path,) = write_for("axolotl", advice, tmp_path, model="mine")
    assert yaml.safe_load(path.read_text())["lora_target_modules"] == r"body\.2|body\.5"
