from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sensitune.errors import ArgumentError, ConfigError
from sensitune.runs import METHODS, RunConfig
from sensitune.runs._config import CriterionName, Method
from sensitune.sensitivity import CRITERIA


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_configuration_survives_yaml(config: RunConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", yaml.safe_dump(config.to_dict()))
    assert RunConfig.from_yaml(path) == config


def test_what_yaml_leaves_out_takes_its_default(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "model: m\ndata: d\nbudget: 400_000\nrecipe: {epochs: 20, learning_rate: 1e-4}")
    config = RunConfig.from_yaml(path)
    assert config.budget == 400_000
    assert (config.recipe.epochs, config.recipe.learning_rate, config.recipe.batch_size) == (20, 1e-4, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bugdet: 1", r"^`bugdet` is not a setting\. The closest one is `budget`\.$"),
        ("recipe: {epoch: 3}", r"^`recipe\.epoch` is not a setting\. The closest one is `recipe\.epochs`\.$"),
        ("recipe: {epochs: ten}", r"`recipe\.epochs` must be a whole number\. Got 'ten'"),
        ("recipe: {epochs: true}", r"`recipe\.epochs` must be a whole number\. Got True"),
        ("recipe: {learning_rate: fast}", r"`recipe\.learning_rate` must be a number\. Got 'fast'"),
        ("recipe: 3", r"`recipe` must be a group of settings\. Got 3"),
        ("method: lore", r"`method` must be one of spt-lora, .*, full\. Got 'lore'"),
        ("tau: 0.5", r"`tau` must be a whole number or null\. Got 0\.5"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_full_name(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_yaml(write(tmp_path / "c.yaml", f"model: m\ndata: d\n{text}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m", r"The setting `data` is missing\. Give it a value"),
        ("- model", r"must be lines of `setting: value`\. It holds a list"),
        ("model: [", r"c\.yaml cannot be read: expected the node content"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_yaml(write(tmp_path / "c.yaml", text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        RunConfig.from_yaml(tmp_path / "nowhere.yaml")


def test_budget_and_tau_exclude_each_other(config: RunConfig) -> None:
    with pytest.raises(ArgumentError, match=r"Give `budget` or `tau`, not both\. Got 9000 and 1,000"):
        replace(config, tau=1000)


def test_a_uniform_method_takes_no_budget(config: RunConfig) -> None:
    with pytest.raises(ArgumentError, match="`budget` has no meaning for the method 'lora'"):
        replace(config, method="lora")


def test_a_limit_below_one_is_refused(config: RunConfig) -> None:
    with pytest.raises(ArgumentError, match=r"`max_test` must be at least 1, or None for all images\. Got 0"):
        replace(config, max_test=0)


def test_the_offered_choices_are_the_ones_there_are() -> None:
    assert set(Method.__args__) == set(METHODS)  # type: ignore[attr-defined]
    assert set(CriterionName.__args__) == set(CRITERIA)  # type: ignore[attr-defined]
