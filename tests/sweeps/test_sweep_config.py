from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sensitune.data import FGVC_DATASETS, VTAB_TASKS
from sensitune.errors import ConfigError
from sensitune.sweeps import RunKey, SweepConfig

RUN = {"backbone": {"name": "vit_tiny_patch16_224"}, "recipe": {"epochs": 3}}


def values(**changes: Any) -> dict[str, Any]:
    return {
        "tasks": {"natural": ["data/a"]},
        "methods": {"SPT": {"allocation": {"method": "spt-lora"}}},
        "run": RUN,
    } | changes


def test_the_two_benchmarks_are_known_by_name_with_their_groups() -> None:
    vtab, fgvc = SweepConfig.from_dict(values(tasks="vtab1k")), SweepConfig.from_dict(values(tasks="fgvc"))
    assert [name for names in vtab.groups.values() for name in names] == list(VTAB_TASKS)
    assert [len(names) for names in vtab.groups.values()] == [7, 4, 8]
    assert vtab.sources["cifar"] == "vtab1k/cifar"
    assert fgvc.groups == {"fgvc": tuple(FGVC_DATASETS)}


def test_a_method_overrides_what_all_share_group_by_group() -> None:
    own = {"allocation": {"method": "lora"}, "recipe": {"learning_rate": 0.01}}
    config = SweepConfig.from_dict(values(methods={"SPT": {"allocation": {"method": "spt-lora"}}, "LoRA": own}))
    assert (config.method_config("LoRA").recipe.learning_rate, config.method_config("LoRA").recipe.epochs) == (0.01, 3)
    assert config.method_config("SPT").recipe.learning_rate == 1e-3


def test_every_combination_is_a_candidate_and_reaches_the_run() -> None:
    config = SweepConfig.from_dict(
        values(choose={"allocation.budget": [1000, 2000], "recipe.learning_rate": [0.1, 0.2]})
    )
    settings = config.candidates()
    assert len(settings) == 4
    run = config.run_config(RunKey("a", "SPT", settings[1], seed=7, retrained=True))
    assert (run.allocation.budget, run.recipe.learning_rate, run.seed, run.data.source) == (1000, 0.2, 7, "data/a")
    assert run.data.train_on_validation
    assert not run.data.test


def test_a_file_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(values(seeds=[3])), encoding="utf-8")
    assert SweepConfig.from_yaml(path) == SweepConfig.from_dict(values(seeds=[3]))


def test_settings_of_all_runs_can_be_replaced() -> None:
    config = SweepConfig.from_dict(values()).with_settings({"data.root": "elsewhere"})
    assert config.method_config("SPT").data.root == "elsewhere"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metods": {}}, "`metods` is not a setting. The closest one is `methods`"),
        ({"tasks": "vtab"}, "`tasks` must be one of vtab1k, fgvc or lists of data by group .* Got 'vtab'"),
        ({"tasks": {"a": ["x/a", "y/a"]}}, "`tasks` has two tasks named 'a': x/a and y/a"),
        ({"methods": {}}, "`methods` must be groups of settings, at least one"),
        ({"methods": {"a b": {}, "a-b": {}}}, "`methods` has 'a b' and 'a-b', whose folders would have one name"),
        (
            {"methods": {"SPT": {"data": {"source": "x"}}}},
            "`methods.SPT` has `data.source`, which is set by the sweep itself",
        ),
        ({"methods": {"SPT": {"metod": "x"}}}, "`metod` is not a setting"),
        ({"methods": 3}, "`methods` must be groups of settings, at least one, .* Got 3"),
        ({"seeds": []}, "`seeds` must be a list of whole numbers from 0, at least one"),
        ({"seeds": [1, 1]}, r"`seeds` must be a list of whole numbers from 0, at least one, each once. Got \[1, 1\]"),
        ({"choose": {"budjet": [1]}}, "`choose` has 'budjet', which is not a setting of a run"),
        ({"choose": {"allocation.budget": 5}}, "`choose.allocation.budget` must be a list"),
        (
            {"choose": {"allocation.rank": [4, 4]}},
            r"`choose.allocation.rank` must be a list of .* each once. Got \[4, 4\]",
        ),
        ({"choose_by": "seed"}, "`choose_by` must be one of task, method. Got 'seed'"),
        ({"choose_tasks": ["a"]}, "`choose_tasks` needs `choose_by: method`"),
        ({"choose_by": "method", "choose_tasks": ["b"]}, "`choose_tasks` has 'b', which is not among the tasks: a"),
        ({"retrain": "yes"}, "`retrain` must be true or false. Got 'yes'"),
        ({"published": {"label": "x"}}, "The setting `published.source` is missing"),
        ({"published": {"labl": "x"}}, "`published.labl` is not a setting"),
        ({"published": {"label": "x", "source": "y", "groups": {"special": 1.0}}}, "`published` has 'special', "),
    ],
)
def test_mistakes_are_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SweepConfig.from_dict(values(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [[1]]}, r"`seeds\[0\]` must be a whole number of at least 0 .* Got \[1\]"),
        ({"seeds": None}, "`seeds` must be a list of whole numbers .* Got None"),
        ({"choose_by": "method", "choose_tasks": [["a"]]}, r"`choose_tasks\[0\]` must be text. Got \['a'\]"),
        ({"about": ["x"]}, r"`about` must be text. Got \['x'\]"),
        ({"tasks": {"g": ["x/.."]}}, "`tasks` has 'x/..', which names no folder of its own"),
        ({"methods": {"SPT": {"recipe": {}}}, "run": {"recipe": 3}}, "`recipe` must be a group of settings. Got 3"),
        ({"choose": {"data": ["x", "y"]}}, "`choose` has `data`, which is set by the sweep itself"),
        ({"choose": {"recipe": [1, 2]}}, "`choose` has 'recipe', which is not a setting of a run"),
        ({"run": {"data": 3}}, "`run` has `data`, which is set by the sweep itself"),
        ({"choose": {"data.source": ["x", "y"]}}, "`choose` has `data.source`, which is set by the sweep itself"),
        ({"choose": {"seed": [1, 2]}}, "`choose` has `seed`, which is set by the sweep itself"),
        ({"choose": {"recipe": [{"epochs": 1}]}}, r"`choose.recipe\[0\]` must be .* Got {'epochs': 1}"),
        ({"choose": {"backbone.checkpoint": ["a/b", "c/d"]}}, "`choose` gives a run the name 'checkpoint=a/b'"),
        ({"choose": {"allocation.budget": ["400000", 400000]}}, "the name 'budget=400000', .* and no other run's"),
        ({"published": {"label": "x", "source": "y", "groups": [1]}}, "`published.groups` must be a group of settings"),
        (
            {"published": {"label": "x", "source": "y", "mean": 764}},
            "`published.mean` must be a number .* Got 764",
        ),
        (
            {"published": {"label": "x", "source": "y", "tasks": {"a": "7"}}},
            "`published.tasks.a` must be a number .* Got '7'",
        ),
    ],
)
def test_a_value_of_the_wrong_shape_is_refused_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SweepConfig.from_dict(values(**changes))
