"""The study's rows: what is run, what is chosen, and the page that quotes what they give."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sensitune.errors import DataError
from sensitune.sweeps import RunKey, SweepConfig

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "benchmarks/accuracy"
PROFILES = sorted(path.stem for path in SUITE.glob("long*.yaml"))


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports a module of the suite, which is a folder of scripts."""
    monkeypatch.syspath_prepend(str(SUITE))
    return importlib.import_module


def small_config(**changes: Any) -> SweepConfig:
    values: dict[str, Any] = {
        "tasks": {"natural": ["a", "b"], "structured": ["c"]},
        "methods": {"LoRA": {"allocation": {"method": "lora"}}, "Head": {"allocation": {"method": "head"}}},
        "choose": {"recipe.learning_rate": [1e-3, 1e-2]},
        "choose_by": "method",
        "choose_tasks": ["a", "c"],
        "seeds": [0, 1],
        "run": {"backbone": {"name": "vit_tiny_patch16_224"}, "recipe": {"epochs": 2}},
    }
    return SweepConfig.from_dict(values | changes)


def finished(suite: Any, study: Any, key: RunKey, *, validation: float, test: float | None = 0.5) -> Any:
    return suite("rows").Row(
        task=key.task,
        group="natural",
        method=key.method,
        settings=study.settings(key),
        seed=key.seed,
        draw=None,
        trainable_params=10,
        test_accuracy=test,
        validation_accuracy=validation,
        train_loss=0.1,
        epochs=2,
        seconds=1.0,
        precision="float32",
        threads=1,
        hardware="cpu",
        date="2026-11-27",
        commit="0",
    )


def test_a_run_with_a_row_is_never_repeated_and_the_best_on_validation_goes_on(suite: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    study = suite("study").Study(small_config(), path)
    order = []
    while (key := next(study.left(), None)) is not None:
        order.append(key)
        # 1e-2 is better on one deciding task and worse on the other, in the mean better for LoRA alone.
        gain = {("LoRA", "a"): 0.3, ("LoRA", "c"): -0.1, ("Head", "a"): 0.1, ("Head", "c"): -0.3}
        better = key.setting["recipe.learning_rate"] == 1e-2
        study.add(finished(suite, study, key, validation=0.5 + better * gain.get((key.method, key.task), 0.0)))
        study = suite("study").Study(small_config(), path)  # as another machine would find it
    assert study.choices() == {"LoRA": {"recipe.learning_rate": 1e-2}, "Head": {"recipe.learning_rate": 1e-3}}
    assert [(key.task, key.method) for key in order[:8]] == [
        (task, method) for task in ("a", "c") for method in ("LoRA", "LoRA", "Head", "Head")
    ]
    # Two methods on three tasks with two seeds; the chosen runs of the deciding tasks are there already.
    assert len(order) == 8 + 2 * 3 * 2 - 4
    assert len(set(order)) == len(order)
    assert suite("rows").read_rows(path) == study.rows


def test_settings_of_a_row_are_those_that_tell_its_run_from_others(suite: Any, tmp_path: Path) -> None:
    study = suite("study").Study(small_config(), tmp_path / "rows.jsonl")
    key = RunKey("b", "LoRA", {"recipe.learning_rate": 1e-2}, 1)
    assert study.settings(key) == {"allocation.method": "lora", "recipe.learning_rate": 1e-2}


@pytest.mark.parametrize("line", ["{", "[]", '{"task": "a"}', "null"])
def test_a_line_that_is_no_row_is_refused_by_its_number(suite: Any, tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    study = suite("study").Study(small_config(), path)
    study.add(finished(suite, study, next(study.left()), validation=0.5))
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2"):
        suite("rows").read_rows(path)


def test_the_same_run_twice_is_refused(suite: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    study = suite("study").Study(small_config(), path)
    row = finished(suite, study, next(study.left()), validation=0.5)
    suite("rows").write_rows(path, [row, replace(row, test_accuracy=0.6)])
    with pytest.raises(DataError, match="twice"):
        suite("rows").read_rows(path)


def test_profiles_of_one_file_of_rows_agree_on_what_is_shared_and_on_every_method(suite: Any) -> None:
    assert "long" in PROFILES
    configs = {name: SweepConfig.from_yaml(SUITE / f"{name}.yaml") for name in PROFILES}
    shared = {str(config.run) for config in configs.values()}
    assert len(shared) == 1
    methods: dict[str, str] = {}
    for config in configs.values():
        for label, settings in config.methods.items():
            assert methods.setdefault(label, str(settings)) == str(settings), label


def test_every_committed_row_is_one_of_the_profiles(suite: Any) -> None:
    rows = suite("tables").ROWS
    studies = [suite("study").Study(SweepConfig.from_yaml(SUITE / f"{name}.yaml"), rows) for name in PROFILES]

    def is_of(row: Any, study: Any) -> bool:
        if row.task not in study.config.sources or row.method not in study.config.methods:
            return False
        keys = [RunKey(row.task, row.method, setting, row.seed) for setting in study.config.candidates()]
        return row.key in map(study.row_key, keys)

    assert all(any(is_of(row, study) for study in studies) for row in studies[0].rows)


def test_the_page_quotes_what_the_rows_give(suite: Any) -> None:
    page = (ROOT / "docs/accuracy.md").read_text(encoding="utf-8")
    assert suite("tables").filled(page) == page
