from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import changed, write_images

from sensitune import _installed, training
from sensitune.data import DataSettings
from sensitune.errors import ArgumentError, ConfigError, MissingPackageError, NonFiniteError, RunFolderError
from sensitune.runs import METHODS, AllocationSettings, Run, RunConfig, merge, predict, read_choice
from sensitune.runs._halving import halve
from sensitune.runs.methods._candidates import CANDIDATES, MOST_CANDIDATES
from sensitune.sweeps import SweepConfig

AUTO = AllocationSettings(method="auto", budget=9_000)


@pytest.fixture(scope="module")
def auto(config: RunConfig) -> RunConfig:
    return replace(changed(config, recipe={"epochs": 6}), allocation=AUTO)


@pytest.fixture(scope="module")
def chosen(auto: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has chosen and trained; read it, do not change it."""
    run = Run.open(tmp_path_factory.mktemp("auto") / "run", auto)
    run.train()
    return run


def test_there_are_at_most_six_candidates_and_each_says_why() -> None:
    assert 2 <= len(CANDIDATES) <= MOST_CANDIDATES
    assert len({each.name for each in CANDIDATES}) == len(CANDIDATES)
    assert all(each.reason and each.method in METHODS for each in CANDIDATES)


def test_it_costs_three_full_runs_at_most_counted_in_steps(chosen: Run) -> None:
    choice = read_choice(chosen)
    assert choice is not None
    # What the candidates' own folders say they trained, and the run itself.
    steps = 0
    for folder in [*chosen.folder.candidates.iterdir(), chosen.folder.path]:
        result = Run.load(folder).train()
        steps += result.last_epoch * math.ceil(result.num_train_images / 8)
    assert steps == sum(each.steps for each in choice.trials) + choice.full_steps
    assert 2 < steps / choice.full_steps <= 3
    assert choice.full_runs == pytest.approx(steps / choice.full_steps)


@pytest.mark.parametrize("epochs", range(6, 120, 7))
@pytest.mark.parametrize("candidates", range(2, MOST_CANDIDATES + 1))
def test_the_bound_holds_for_every_length_and_number_of_candidates(epochs: int, candidates: int) -> None:
    names = [str(number) for number in range(candidates)]
    rungs = halve(names, lambda name, length: -int(name), epochs=epochs // MOST_CANDIDATES)
    assert sum(each.epochs for each in rungs) + epochs <= 3 * epochs
    assert {each.name for each in rungs if each.rung == 1} == set(names)


def test_the_best_on_every_rung_goes_on_whatever_the_order_and_equals_go_by_order() -> None:
    quality = {"a": 0.2, "b": 0.9, "c": 0.5, "d": 0.8, "e": 0.1, "f": 0.9}
    late = {"b": 0.5, "f": 0.7}
    for names in ("abcdef", "fedcba", "cafebd"):
        rungs = halve(list(names), lambda name, length: (late if length == 12 else quality)[name], epochs=4)
        assert {each.name for each in rungs if each.rung == 1 and each.kept} == {"b", "f"}
        assert [each.name for each in rungs if each.rung == 2 and each.kept] == ["f"]
        assert {each.epochs for each in rungs if each.rung == 2} == {12}
    same = halve(list("abcdef"), lambda name, length: 0.5, epochs=1)
    assert {each.name for each in same if each.rung == 1 and each.kept} == {"a", "b"}
    assert [each.name for each in same if each.rung == 2 and each.kept] == ["a"]


def test_what_goes_on_is_what_did_best_on_the_validation_split(chosen: Run) -> None:
    choice = read_choice(chosen)
    assert choice is not None
    for rung in (1, 2):
        rated = [(each.validation_accuracy, -(each.validation_loss or 0), each.kept) for each in choice.trials
                 if each.rung == rung]  # fmt: skip
        best = sorted(rated, reverse=True)
        assert [kept for *_, kept in best] == sorted((kept for *_, kept in rated), reverse=True)
    kept = [each for each in choice.trials if each.kept]
    assert kept[-1].candidate == choice.chosen
    assert kept[-1].outcome == "chosen"


def test_every_candidate_spends_the_same_budget_and_none_sees_the_test_split(chosen: Run) -> None:
    folders = list(chosen.folder.candidates.iterdir())
    assert len(folders) == len(CANDIDATES) + 2
    for folder in folders:
        run = Run.load(folder)
        assert run.train().test_accuracy_last is None
        assert "test" not in run.ingredients.data.dataset
        cost = run.origin().trainable_params
        assert cost <= 9_000 < cost * (run.config.allocation.rank + 1) / run.config.allocation.rank, folder.name
    assert chosen.train().test_accuracy_last is not None


def test_scores_are_taken_once_for_all_who_take_the_same(chosen: Run) -> None:
    # With and without gradients beside them; a candidate that comes later takes either.
    assert 1 <= len(list((chosen.folder.path / "scores").glob("*.safetensors"))) <= 2
    assert not list(chosen.folder.path.rglob("sensitivity.safetensors"))


def test_the_run_is_an_ordinary_one_of_the_chosen_method(chosen: Run, images: Path, tmp_path: Path) -> None:
    adapter = chosen.folder.training.adapter
    assert chosen.origin().method == chosen.settled.method.name
    assert predict(adapter, [images / "red" / "0.png"]).best(0)
    if chosen.settled.method.name != "spt-adapter":
        assert merge(adapter, tmp_path / "merged.safetensors").is_file()
    assert chosen.evaluate().accuracy == chosen.train().test_accuracy_last


def test_the_chosen_ones_training_is_that_of_a_run_with_its_settings(chosen: Run, tmp_path: Path) -> None:
    alone = Run.open(tmp_path / "alone", chosen.settled).train()
    together = chosen.train()
    assert [row.train_loss for row in alone.metrics] == [row.train_loss for row in together.metrics]
    assert alone.test_accuracy_last == together.test_accuracy_last


class Killed(BaseException):
    pass


def with_candidates(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    monkeypatch.setitem(vars(METHODS["auto"]), "candidates", [CANDIDATES[each] for each in numbers])


@pytest.mark.parametrize(
    ("candidates", "dies_at"),
    [
        ((0, 4), 2),
        pytest.param((0, 1, 4), 2, marks=pytest.mark.slow),
        pytest.param((0, 1, 4), 3, marks=pytest.mark.slow),
        pytest.param((0, 1, 4), 5, marks=pytest.mark.slow),
    ],
)
def test_one_that_was_killed_goes_on_to_the_same_result(
    auto: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidates: tuple[int, ...], dies_at: int
) -> None:
    with_candidates(monkeypatch, *candidates)
    whole = Run.open(tmp_path / "whole", auto)
    expected = whole.train()
    fit, fitted = training._train._Run.fit, []

    def dying(*arguments: Any) -> Any:
        fitted.append(1)
        if len(fitted) == dies_at:
            raise Killed
        return fit(*arguments)

    folder = tmp_path / "run"
    monkeypatch.setattr(training._train._Run, "fit", dying)
    with pytest.raises(Killed):
        Run.open(folder, auto).train()
    run = Run.open(folder, auto)
    result = run.train()
    # The candidates, the best of three once more, and the run itself; only what died is done twice.
    assert len(fitted) == len(candidates) + (len(candidates) == 3) + 1 + 1
    assert read_choice(run) == read_choice(whole)
    assert result.test_accuracy_last == expected.test_accuracy_last
    assert [row.train_loss for row in result.metrics] == [row.train_loss for row in expected.metrics]


def test_a_folder_with_candidates_belongs_to_its_settings(auto: RunConfig, chosen: Run) -> None:
    with pytest.raises(RunFolderError, match=r"`allocation\.budget` is 9000, not 8000"):
        Run.open(chosen.folder.path, changed(auto, allocation={"budget": 8_000}))


def test_a_candidate_whose_loss_is_not_finite_is_dropped_and_said_to_be(
    auto: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_candidates(monkeypatch, 0, 4)
    train = Run._train

    def diverging(run: Run) -> Any:
        if run.folder.path.name.startswith("spt-lora-best"):
            raise NonFiniteError("The loss must stay finite.")
        return train(run)

    monkeypatch.setattr(Run, "_train", diverging)
    run = Run.open(tmp_path / "run", auto)
    run.train()
    choice = read_choice(run)
    assert choice is not None
    lost = next(each for each in choice.trials if each.validation_accuracy is None)
    assert (lost.candidate, lost.kept) == ("SPT-LoRA, preset best", False)
    assert lost.outcome == "dropped: its loss did not stay finite"


def test_what_the_budget_does_not_pay_for_is_left_out_and_said(auto: RunConfig, tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", changed(auto, allocation={"budget": 2_000}))
    plans, left_out = run.config.method.plans(  # type: ignore[attr-defined]
        run.config.allocation, lambda fused: run.ingredients.outline(split_fused=fused)
    )
    assert left_out["LoRA on all linear layers"] == "Rank 1 costs 6,144 parameters, the budget is 2,000."
    assert all(plan.settings.budget == 2_000 or plan.settings.rank == 1 for plan in plans)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: changed(c, allocation={"rank": 4}), r"`allocation\.rank` is what each candidate .* Got 4"),
        (lambda c: changed(c, allocation={"tau": 10, "budget": None}), r"`allocation\.tau` belongs to"),
        (lambda c: changed(c, allocation={"lora_start": "gradient"}), r"`allocation\.lora_start` belongs to"),
        (lambda c: changed(c, recipe={"in_place_rate": 0.5}), r"`recipe\.in_place_rate` is what each .* Got 0\.5"),
        (lambda c: changed(c, recipe={"epochs": 5}), r"`recipe\.epochs` must be at least 6 with the method auto"),
        (lambda c: changed(c, data={"train_on_validation": True}), r"leaves no validation split for the method auto"),
    ],
)
def test_settings_that_mean_nothing_to_it_are_refused(
    auto: RunConfig, change: Callable[[RunConfig], RunConfig], sentence: str
) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        change(auto)


def test_a_budget_below_the_cheapest_candidate_is_refused_before_anything_is_written(
    auto: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=r"`allocation\.budget` pays for no candidate of auto\. Got 100\."):
        Run.open(tmp_path / "run", changed(auto, allocation={"budget": 100}))
    assert not (tmp_path / "run").exists()


def test_data_without_a_validation_split_is_refused(auto: RunConfig, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / "squares" / split, per_class=3)
    data = DataSettings(str(tmp_path / "squares"))
    run = Run.open(tmp_path / "other", replace(auto, allocation=AllocationSettings(method="head"), data=data))
    if "validation" in run.ingredients.data.dataset:
        splits = {name: part for name, part in run.ingredients.data.dataset.items() if name != "validation"}
        run.ingredients.__dict__["data"] = run.ingredients.data.with_splits(splits)
    without = Run(replace(run.folder, config=replace(auto, data=data)), ingredients=run.ingredients)
    with pytest.raises(ArgumentError, match=r"chooses on a validation split, and the data has none: train, test"):
        without.check()


def test_a_missing_scikit_learn_is_named_with_the_line_that_installs_it(
    auto: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [_installed.Package("scikit-learn", ">=1.6", None)]
    monkeypatch.setattr(_installed, "packages", lambda extra: missing if extra == "auto" else [])
    with pytest.raises(MissingPackageError, match=r"The method auto needs scikit-learn.*sensitune\[auto\]"):
        Run.open(tmp_path / "run", auto)


def test_a_sweep_takes_it_as_a_method_unless_its_runs_have_no_validation_split() -> None:
    sweep = {
        "tasks": {"own": ["squares"]},
        "methods": {"Auto": {"allocation": {"method": "auto", "budget": 9_000}}},
        "run": {"backbone": {"name": "vit_tiny_patch16_224"}, "recipe": {"epochs": 6}},
        "seeds": [0],
    }
    assert SweepConfig.from_dict({**sweep, "retrain": False}).method_config("Auto").method.name == "auto"
    with pytest.raises(ConfigError, match=r"`methods` has 'Auto', of the method auto.*Set `retrain: false`"):
        SweepConfig.from_dict({**sweep, "retrain": True})


def test_choice_json_says_what_was_tried(chosen: Run) -> None:
    values = json.loads(chosen.folder.choice.read_text(encoding="utf-8"))
    assert set(values) == {"chosen", "settings", "full_steps", "trials", "left_out"}
    assert set(values["trials"][0]) == {
        "candidate", "rung", "epochs", "steps", "validation_accuracy", "validation_loss", "kept", "outcome"
    }  # fmt: skip
