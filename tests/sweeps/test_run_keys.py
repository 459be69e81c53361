from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sensitune._schema import read, to_plain
from sensitune.errors import ConfigError
from sensitune.sweeps import RunKey
from sensitune.sweeps._key import describe, slug
from sensitune.sweeps._merge import dotted_names, merge_settings, nest

SETTING = {"allocation.budget": "0.4M", "recipe.learning_rate": 0.1}


def test_the_folder_follows_from_the_key() -> None:
    key = RunKey("cifar", "Uniform LoRA (r=1)", SETTING, seed=3, retrained=True)
    assert key.folder == Path("cifar/uniform-lora-r-1/budget=0.4M,learning_rate=0.1,retrained/seed3")
    assert str(key) == key.folder.as_posix()
    assert RunKey("cifar", "Head", {}, seed=0).folder == Path("cifar/head/plain/seed0")


def test_keys_are_the_same_run_whatever_the_order_of_the_setting() -> None:
    turned = dict(reversed(SETTING.items()))
    assert {RunKey("a", "b", SETTING, 0), RunKey("a", "b", turned, 0)} == {RunKey("a", "b", SETTING, 0)}
    others = [RunKey("a", "b", SETTING, 1), RunKey("a", "b", SETTING, 0, retrained=True), RunKey("a", "c", SETTING, 0)]
    assert RunKey("a", "b", SETTING, 0) not in others


@pytest.mark.parametrize("value", [True, 3, 0.5, "0.4M", None])
def test_a_key_survives_plain_values_with_the_types_of_its_setting(value: Any) -> None:
    key = RunKey("a", "b", {"x.y": value}, seed=0)
    again = read(RunKey, to_plain(key))
    assert again == key
    assert type(again.setting["x.y"]) is type(value)


def test_a_label_with_a_slash_is_no_two_folders() -> None:
    assert slug("SPT/LoRA, r = 8") == "spt-lora-r-8"
    assert describe({}) == "plain"


def test_settings_are_laid_over_each_other_group_by_group() -> None:
    shared = {"recipe": {"epochs": 3, "batch_size": 8}, "seed": 1}
    own = {"recipe": {"epochs": 5}, "data": {"root": "x"}}
    assert merge_settings(shared, own) == {
        "recipe": {"epochs": 5, "batch_size": 8},
        "seed": 1,
        "data": {"root": "x"},
    }
    assert shared == {"recipe": {"epochs": 3, "batch_size": 8}, "seed": 1}


@pytest.mark.parametrize(
    "layers", [({"a": {"b": 3}}, {"a": {"b": {"c": 1}}}), ({"a": {"b": {"c": 1}}}, {"a": {"b": 3}})]
)
def test_a_group_and_a_value_of_one_name_contradict_each_other(layers: Any) -> None:
    with pytest.raises(ConfigError, match=r"^`a\.b` must be a group of settings\. Got 3\.$"):
        merge_settings(*layers)


def test_dotted_names_and_groups_are_two_ways_to_write_the_same() -> None:
    nested = {"allocation": {"budget": "0.4M"}, "recipe": {"learning_rate": 0.1}}
    assert nest(SETTING) == nested
    assert list(dotted_names(nested)) == list(SETTING)
