from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small_runs import changed

from sensitune.errors import ArgumentError, ConfigError
from sensitune.runs import RunConfig

REQUIRED = "backbone: {name: m}\ndata: {source: d}"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_configuration_survives_yaml(config: RunConfig, tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", yaml.safe_dump(config.to_dict()))
    assert RunConfig.from_yaml(path) == config


def test_what_yaml_leaves_out_takes_its_default(tmp_path: Path) -> None:
    text = f"{REQUIRED}\nallocation: {{budget: 400_000}}\nrecipe: {{epochs: 20, learning_rate: 1e-4}}"
    config = RunConfig.from_yaml(write(tmp_path / "c.yaml", text))
    assert config.allocation.budget == 400_000
    assert (config.recipe.epochs, config.recipe.learning_rate, config.recipe.batch_size) == (20, 1e-4, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bakcbone: {}", r"c\.yaml: `bakcbone` is not a setting\. The closest one is `backbone`\.$"),
        (
            "budget: 1",
            r"c\.yaml: `budget` is a setting of the group `allocation`\. Write `allocation: \{budget: \.\.\.\}`\.$",
        ),
        (
            "allocation: {bugdet: 1}",
            r"c\.yaml: `allocation\.bugdet` is not a setting\. The closest one is `allocation\.budget`\.$",
        ),
        ("recipe: {epoch: 3}", r"c\.yaml: `recipe\.epoch` is not a setting\. The closest one is `recipe\.epochs`\.$"),
        ("recipe: {epochs: ten}", r"`recipe\.epochs` must be a whole number.*\. Got 'ten'"),
        ("recipe: {epochs: true}", r"`recipe\.epochs` must be a whole number.*\. Got True"),
        ("recipe: {learning_rate: fast}", r"`recipe\.learning_rate` must be a number.*\. Got 'fast'"),
        ("recipe: 3", r"`recipe` must be a group of settings\. Got 3"),
        ("allocation: {method: lore}", r"`allocation\.method` must be one of spt-lora, .*, auto\. Got 'lore'"),
        ("allocation: {tau: 0.5}", r"`allocation\.tau` must be a whole number of at least 1 or null\. Got 0\.5"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_full_name(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_yaml(write(tmp_path / "c.yaml", f"{REQUIRED}\n{text}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbone: {name: m}", r"The setting `data` is missing\. Give it a value"),
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
    with pytest.raises(ArgumentError, match=r"Give `allocation\.budget` or `allocation\.tau`, .* Got 9000 and 1,000"):
        changed(config, allocation={"tau": 1000})


def test_a_uniform_method_takes_no_budget(config: RunConfig) -> None:
    with pytest.raises(ArgumentError, match=r"`allocation\.budget` belongs to the methods spt-lora, .*, not to lora\."):
        changed(config, allocation={"method": "lora"})


def test_a_limit_below_one_is_refused(config: RunConfig) -> None:
    with pytest.raises(ArgumentError, match=r"`max_test` must be a whole number of at least 1,? or None\. Got 0"):
        changed(config, data={"max_test": 0})


@pytest.mark.parametrize("budget", ["abc", "0.5 of it", 0, -3, "0%", "0.4MM"])
def test_a_budget_that_cannot_be_read_or_buys_nothing_is_refused_before_anything_is_computed(
    budget: int | str, config: RunConfig
) -> None:
    with pytest.raises(ArgumentError, match="budget` must be"):
        changed(config, allocation={"budget": budget})
