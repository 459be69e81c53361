from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lock_holder import Holder

from sensitune import _lock
from sensitune.errors import ArgumentError, NonFiniteError, RunFolderError
from sensitune.runs import Run, RunConfig, RunFolder
from sensitune.sensitivity import Sensitivity
from sensitune.sweeps import Job, JobOutcome, RunKey, SweepConfig, SweepRecord, collect, planned_runs, run_sweep
from sensitune.sweeps._choose import choose_settings, choosing_jobs
from sensitune.sweeps._collect import final_jobs
from sensitune.sweeps._jobs import run_job
from sensitune.training import TrainingResult, read_result
from sensitune_command import main

RATES = [1e-3, 3e-3]


def make_sweep(config: RunConfig, **changes: Any) -> SweepConfig:
    shared = config.to_dict()
    for group, name in (
        *(("data", each) for each in ("source", "test", "train_on_validation")),
        *(("allocation", each) for each in ("method", "budget")),
    ):
        del shared[group][name]
    del shared["seed"]
    shared["recipe"] |= {"epochs": 1, "warmup_share": 0.0}
    methods = {
        "SPT-LoRA": {"allocation": {"method": "spt-lora", "budget": 9_000}},
        "Head only": {"allocation": {"method": "head"}},
    }
    return SweepConfig.from_dict(
        {
            "tasks": {"natural": [config.data.source]},
            "methods": methods,
            "run": shared,
            "choose": {"recipe.learning_rate": RATES},
            "seeds": [0, 1],
        }
        | changes
    )


@pytest.fixture(scope="module")
def swept(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepConfig, Path, list[JobOutcome]]:
    """A sweep that has run; read it, do not change it."""
    folder, told = tmp_path_factory.mktemp("sweep"), []
    sweep = make_sweep(config)
    run_sweep(sweep, folder, on_done=lambda outcome, ended, total: told.append(outcome))
    return sweep, folder, told


def test_settings_are_chosen_on_the_validation_split_and_tested_once(
    swept: tuple[SweepConfig, Path, list[JobOutcome]],
) -> None:
    sweep, folder, told = swept
    assert len(told) == 2 * 2 + 2 * 2  # methods × rates, methods × seeds
    chosen = choosing_jobs(sweep, folder)
    assert all(not RunFolder.load(job.folder).evaluation.exists() for job in chosen)
    assert all(read_result(job.folder).test_accuracy_last is None for job in chosen)
    for job in final_jobs(sweep, folder):
        assert job.config.data.train_on_validation
        assert json.loads((job.folder / "evaluation.json").read_text())["split"] == "test"


def test_the_choice_is_the_setting_with_the_best_validation_accuracy(
    swept: tuple[SweepConfig, Path, list[JobOutcome]],
) -> None:
    sweep, folder, _ = swept
    result = collect(sweep, folder)
    for tested in result.runs:
        reached = {}
        for rate in RATES:
            tried = RunKey(tested.key.task, tested.key.method, {"recipe.learning_rate": rate}, seed=0)
            path = folder / "runs" / tried.folder
            reached[rate] = read_result(path).validation_accuracy_last
        assert tested.key.setting == {"recipe.learning_rate": max(reached, key=lambda rate: reached[rate])}


def test_the_results_hold_every_tested_run_with_its_budget(swept: tuple[SweepConfig, Path, list[JobOutcome]]) -> None:
    sweep, folder, _ = swept
    result = collect(sweep, folder)
    assert result.complete
    assert {(run.key.method, run.key.seed, run.trainable_params) for run in result.runs} == {
        *(("SPT-LoRA", seed, 9_000) for seed in (0, 1)),
        *(("Head only", seed, 0) for seed in (0, 1)),
    }
    accuracies = result.accuracies("SPT-LoRA")
    assert {task: len(values) for task, values in accuracies.items()} == {"squares": 2}
    assert SweepRecord.load(folder / "results.json") == result.record
    assert result.record.complete


def test_a_finished_sweep_is_not_repeated_and_a_lost_result_alone_is(config: RunConfig, tmp_path: Path) -> None:
    sweep = make_sweep(config, seeds=[0])
    run_sweep(sweep, tmp_path)
    before = file_times(tmp_path)
    told: list[RunKey] = []
    run_sweep(sweep, tmp_path, on_done=lambda outcome, ended, total: told.append(outcome.key))
    assert told == []
    assert file_times(tmp_path) == before
    lost = final_jobs(sweep, tmp_path)[0]
    (lost.folder / "evaluation.json").unlink()
    assert [left for _, left, _ in planned_runs(sweep, tmp_path)] == [0, 1]
    run_sweep(sweep, tmp_path, on_done=lambda outcome, ended, total: told.append(outcome.key))
    assert told == [lost.key]


def file_times(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in {"results.json", "sweep.yaml"})
    return {path: path.stat().st_mtime_ns for path in files}


def test_without_retraining_the_chosen_runs_themselves_are_tested(config: RunConfig, tmp_path: Path) -> None:
    sweep = make_sweep(config, retrain=False, seeds=[0])
    result = run_sweep(sweep, tmp_path)
    assert result.complete
    assert len(list(tmp_path.glob("runs/**/training.json"))) == 2 * 2


def test_one_choice_for_all_tasks_goes_by_the_mean_of_the_deciding_ones(config: RunConfig) -> None:
    tasks = {"natural": ["x/a", "x/b", "x/c"]}
    reached = {
        ("a", "SPT-LoRA"): {"learning_rate=0.001": 0.5, "learning_rate=0.003": 0.6},
        ("b", "SPT-LoRA"): {"learning_rate=0.001": 0.9, "learning_rate=0.003": 0.2},
    }
    all_decide = make_sweep(config, tasks=tasks, choose_by="method")
    assert choose_settings(all_decide, reached) == {}
    two_decide = make_sweep(config, tasks=tasks, choose_by="method", choose_tasks=["a", "b"])
    found = choose_settings(two_decide, reached)
    assert found == {(task, "SPT-LoRA"): {"recipe.learning_rate": 1e-3} for task in "abc"}
    own = choose_settings(make_sweep(config, tasks=tasks), reached)
    assert own["a", "SPT-LoRA"] == {"recipe.learning_rate": 3e-3}


def test_a_tie_goes_to_the_first_value(config: RunConfig) -> None:
    sweep = make_sweep(config)
    tied = {("squares", "Head only"): {"learning_rate=0.001": 0.5, "learning_rate=0.003": 0.5}}
    assert choose_settings(sweep, tied) == {("squares", "Head only"): {"recipe.learning_rate": 1e-3}}


def test_a_run_that_fails_is_told_and_the_others_go_on(config: RunConfig, tmp_path: Path) -> None:
    sweep = make_sweep(config, seeds=[0], choose={})
    sweep = replace(sweep, tasks={"natural": (*sweep.sources.values(), str(tmp_path / "missing"))})
    result = run_sweep(sweep, tmp_path / "out")
    assert sorted(map(str, result.failed)) == [
        "missing/head-only/plain,retrained/seed0",
        "missing/spt-lora/plain,retrained/seed0",
    ]
    assert len(result.runs) == 2
    assert not result.complete


def diverge_at(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every training at a learning rate end as if its loss were not finite."""
    original = Run.train

    def train(run: Run) -> TrainingResult:
        if run.config.recipe.learning_rate == rate:
            raise NonFiniteError("The loss must stay finite. Got nan.")
        return original(run)

    monkeypatch.setattr(Run, "train", train)


def test_a_training_that_diverges_counts_as_zero_and_is_not_tried_again(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge_at(10.0, monkeypatch)
    sweep = make_sweep(config, seeds=[0], choose={"recipe.learning_rate": [1e-3, 10.0]})
    result = run_sweep(sweep, tmp_path)
    assert result.validation["squares", "SPT-LoRA"]["learning_rate=10.0"] == 0.0
    assert {run.key.setting["recipe.learning_rate"] for run in result.runs} == {1e-3}
    assert result.failed == {}  # it was tried and not chosen
    assert planned_runs(sweep, tmp_path) == [("choose settings with", 0, 4), ("test", 0, 2)]


def test_a_training_that_diverged_is_tried_again_with_the_recipe_that_it_advises(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge_at(10.0, monkeypatch)
    sweep = make_sweep(config, seeds=[0], choose={}).with_settings({"recipe.learning_rate": 10.0})
    failed = run_sweep(sweep, tmp_path).failed
    assert set(failed.values()) == {"The loss must stay finite. Got nan."}
    lower = sweep.with_settings({"recipe.learning_rate": 1e-3})
    assert [left for _, left, _ in planned_runs(lower, tmp_path)] == [0, 2]
    result = run_sweep(lower, tmp_path)
    assert (result.complete, result.failed) == (True, {})
    assert not list(tmp_path.rglob("diverged.txt"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("training.json", "{"),
        ("metrics.jsonl", ""),
        ("evaluation.json", "[]"),
        ("run.yaml", "backbone: {"),
        ("adapter/sensitune.json", "{}"),
    ],
)
def test_a_damaged_run_stops_neither_the_sweep_nor_its_table(
    swept: tuple[SweepConfig, Path, list[JobOutcome]], tmp_path: Path, name: str, damage: str
) -> None:
    sweep, folder, _ = swept
    shutil.copytree(folder, tmp_path / "sweep")
    job = final_jobs(sweep, tmp_path / "sweep")[0]
    (job.folder / name).write_text(damage)
    other = choosing_jobs(sweep, tmp_path / "sweep")[-1]  # what another method's choice needs
    (other.folder / "training.json").write_bytes(b"\xff")
    for found in (collect(sweep, tmp_path / "sweep"), run_sweep(sweep, tmp_path / "sweep")):
        assert set(found.failed) == {job.key, other.key}
        assert str(job.folder / name.rpartition("/")[2]) in found.failed[job.key].replace("adapter/", "")
        assert {run.key.method for run in found.runs} == {"SPT-LoRA"}
        assert len(found.runs) == 1
    shutil.rmtree(job.folder)
    shutil.rmtree(other.folder)
    assert run_sweep(sweep, tmp_path / "sweep").complete


def test_a_sweep_under_way_is_named_and_its_runs_have_locks_of_their_own(
    swept: tuple[SweepConfig, Path, list[JobOutcome]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lock, "PATIENCE", 0.0)
    sweep, folder, _ = swept
    shutil.copytree(folder, tmp_path / "sweep")
    job = final_jobs(sweep, tmp_path / "sweep")[0]
    for held, told in ((tmp_path / "sweep", 0), (job.folder, 1)):
        (job.folder / "evaluation.json").unlink(missing_ok=True)
        holder = Holder(held / ".lock")
        try:
            if told:
                failed = run_sweep(sweep, tmp_path / "sweep").failed
                assert f"is being worked on by process {holder.process.pid}" in failed[job.key]
            else:
                with pytest.raises(RunFolderError, match=f"is being worked on by process {holder.process.pid}"):
                    run_sweep(sweep, tmp_path / "sweep")
                assert collect(sweep, tmp_path / "sweep").num_runs == 4  # its table can be looked at
        finally:
            holder.kill()
    assert run_sweep(sweep, tmp_path / "sweep").complete
    assert not list((tmp_path / "sweep").rglob(".*"))


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="`device` 'mps' is not available on this machine"):
        run_sweep(make_sweep(config).with_settings({"compute.device": "mps"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_finished_run_was_killed_before_removing_goes_with_the_next_start(
    swept: tuple[SweepConfig, Path, list[JobOutcome]], tmp_path: Path
) -> None:
    sweep, folder, _ = swept
    shutil.copytree(folder, tmp_path / "sweep")
    left = (
        final_jobs(sweep, tmp_path / "sweep")[0].folder / "checkpoints" / "checkpoint-3",
        choosing_jobs(sweep, tmp_path / "sweep")[0].folder / ".adapter.0123abcd",
        tmp_path / "sweep" / "scores" / ".a.safetensors.0123abcd.safetensors",
    )
    for each in left:
        each.mkdir(parents=True)
    before = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    run_sweep(sweep, tmp_path / "sweep")
    assert {str(path.relative_to(tmp_path / "sweep")) for path in (tmp_path / "sweep").rglob("*")} == before


def test_a_job_ends_like_a_run_of_its_own(config: RunConfig, finished: RunFolder, tmp_path: Path) -> None:
    job = Job(RunKey("a", "b", {}, seed=0), tmp_path / "run", config, tmp_path / "scores", test=True)
    outcome = run_job(job)
    assert outcome.error is None
    expected, found = read_result(finished.path), read_result(job.folder)
    assert found.test_accuracy_last == expected.test_accuracy_last
    assert [row.train_loss for row in found.metrics] == [row.train_loss for row in expected.metrics]
    shared = Sensitivity.load(tmp_path / "scores" / config.scoring.file_name)
    own = Sensitivity.load(finished.sensitivity)
    assert all((shared.scores[name] == own.scores[name]).all() for name in own.scores)


def test_a_file_in_the_way_is_refused(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("x")
    with pytest.raises(ArgumentError, match="A sweep's folder cannot be a file. Got .*taken"):
        run_sweep(make_sweep(config), path)


def test_a_folder_of_something_else_is_refused(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    with pytest.raises(ArgumentError, match="is not empty and not a sweep's folder"):
        run_sweep(make_sweep(config), tmp_path)


def test_finished_runs_with_other_settings_are_refused_and_not_taken_for_these(
    swept: tuple[SweepConfig, Path, list[JobOutcome]],
) -> None:
    sweep, folder, _ = swept
    other = sweep.with_settings({"data.augment": True})
    for read in (planned_runs, collect, run_sweep):
        with pytest.raises(RunFolderError, match="holds a run with other settings: `data.augment` is False, not True"):
            read(other, folder)
    assert len(collect(sweep.with_settings({"data.root": "moved", "compute.device": "cpu"}), folder).runs) == 4


def test_only_the_last_weights_on_the_test_split_count_as_a_test(config: RunConfig, tmp_path: Path) -> None:
    sweep = make_sweep(
        config, seeds=[0], choose={}, retrain=False, methods={"Head only": {"allocation": {"method": "head"}}}
    )
    expected = run_sweep(sweep, tmp_path).runs
    Run.load(tmp_path / "runs/squares/head-only/plain/seed0").evaluate(split="validation")
    assert collect(sweep, tmp_path).runs == ()
    assert run_sweep(sweep, tmp_path).runs == expected


def test_a_complete_sweep_removes_its_own_scores_alone(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "scores/mine").mkdir(parents=True)
    sweep = make_sweep(config, seeds=[0], choose={})
    assert run_sweep(sweep, tmp_path).complete
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["mine"]


def test_a_table_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "tasks: {g: [a]}\nmethods: {LoRA: {allocation: {method: lora}, backbone: {name: vit_tiny_patch16_224}}}\n"
    )
    assert main(["sweep", str(file), "--output", str(tmp_path / "typo"), "--table"]) == 2
    assert "holds no runs of a sweep to make a table of" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()
