"""What can be known before anything is computed is checked before anything is written; a mistake locks no folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from lock_holder import Holder
from small_runs import changed

from sensitune import _lock
from sensitune.errors import ArgumentError, BudgetError, DataError, ModelError, RunFolderError, SensituneError
from sensitune.runs import Run, RunConfig, RunFolder, compare, merge
from sensitune.training import read_result


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "PATIENCE", 0.0)


def nothing_in(folder: Path) -> bool:
    return not any(folder.iterdir())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"compute": {"device": "mps"}}, ArgumentError, "`device` 'mps' is not available on this machine"),
        ({"data": {"source": "missing"}}, DataError, "The image folder missing does not exist"),
        ({"data": {"resize": 16}}, ArgumentError, r"`resize` must be at least `image_size` \(32\)\. Got 16"),
        ({"backbone": {"name": "no_such_model"}}, ModelError, "'no_such_model' is not a timm model"),
        ({"backbone": {"image_size": 40}}, ModelError, "`image_size` must be a multiple of 16"),
        ({"backbone": {"num_blocks": 13}}, ModelError, "`num_blocks` must be at most 12"),
        ({"allocation": {"budget": 100}}, BudgetError, "`budget` must be at least 192 parameters"),
        ({"allocation": {"budget": "90%"}}, BudgetError, r"exceeds what rank 4 can use \(33,216\)\. Raise `rank`"),
        ({"allocation": {"rank": 193}}, ArgumentError, "`rank` must be at most 192, the most that a matrix"),
        ({"allocation": {"method": "lora", "budget": None, "rank": 193}}, ArgumentError, "`rank` must be at most 192"),
        ({"allocation": {"method": "sparse", "budget": "99%"}}, BudgetError, r"sparse tuning can use \(890,304\)"),
        ({"allocation": {"servable": True, "budget": 30_000}}, BudgetError, r"exceeds what rank 4 can use \(27,648\)"),
        ({"allocation": {"method": "layerwise", "budget": "90%"}}, BudgetError, "exceeds what the linear layers can"),
        ({"allocation": {"method": "neuron", "budget": 300}}, BudgetError, "must pay for one input of each of the"),
        ({"allocation": {"method": "random-lora", "budget": 200}}, BudgetError, "pays for no lora of rank 4"),
        ({"allocation": {"budget": None, "tau": 10**7}}, ArgumentError, "`tau` must lie between 1 and the 890,112 sca"),
        (
            {"allocation": {"method": "peft", "budget": None, "peft": {"peft_type": "LORA", "target_modules": ["no"]}}},
            ArgumentError,
            "PEFT cannot put the configuration",
        ),
    ],
)
def test_what_has_no_room_or_is_not_there_is_refused_before_anything_is_written(
    config: RunConfig, tmp_path: Path, changes: dict[str, Any], error: type[SensituneError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Run.open(tmp_path / "runs" / "a", changed(config, **changes))
    assert nothing_in(tmp_path)
    Run.open(tmp_path / "runs" / "a", config)  # the corrected command simply runs


def test_the_check_finds_no_more_than_the_stages_would(config: RunConfig, tmp_path: Path) -> None:
    largest = changed(config, allocation={"method": "sparse", "budget": 890_304})
    assert Run.open(tmp_path / "sparse", largest).allocation().trainable_params == 890_304
    least = changed(config, allocation={"method": "neuron", "budget": 192 + 2 * (4 * 192 + 768 + 192)})
    assert Run.open(tmp_path / "neuron", least).allocation().metadata["inputs_per_neuron"] == 1


def test_a_model_without_drop_path_says_so_before_it_is_scored(config: RunConfig, tmp_path: Path) -> None:
    backbone = {"name": "resnet10t", "num_blocks": None}
    with pytest.raises(ModelError, match="resnet10t cannot take images of 1 × 1 pixels|has no drop-path"):
        Run.open(tmp_path / "a", changed(config, backbone={"name": "vgg11", "num_blocks": None}))
    Run.open(tmp_path / "b", changed(config, backbone=backbone, recipe={"drop_path": 0.0}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]


def test_a_comparison_checks_every_method_before_the_first_is_computed(config: RunConfig, tmp_path: Path) -> None:
    impossible = changed(config, allocation={"budget": "90%"})
    with pytest.raises(BudgetError, match="exceeds what rank 4 can use"):
        compare(impossible, tmp_path / "out", methods=("head", "spt-lora"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_another_process_in_the_folder_is_named_and_nothing_is_touched(
    finished: RunFolder, config: RunConfig, tmp_path: Path
) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    (tmp_path / "run" / "training.json").unlink()
    holder = Holder(tmp_path / "run" / ".lock")
    try:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        run = Run.load(tmp_path / "run")
        for start in (run.train, run.evaluate, lambda: Run.open(tmp_path / "run", config)):
            with pytest.raises(RunFolderError, match=f"is being worked on by process {holder.process.pid} on "):
                start()
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    finally:
        holder.kill()
    Run.open(tmp_path / "run", config).train()
    assert not (tmp_path / "run" / ".lock").exists()


class PullsThePlug:
    """Interrupts the training in its first or second epoch."""

    def __init__(self, step: int) -> None:
        self.at = step

    def stage(self, title: str) -> None:
        pass

    def step(self, done: int, total: int | None, note: str = "") -> None:
        if done == self.at and "epoch" in note:
            raise KeyboardInterrupt


def test_a_training_that_has_not_ended_an_epoch_takes_another_recipe(config: RunConfig, tmp_path: Path) -> None:
    other = changed(config, recipe={"learning_rate": 1e-3})
    with pytest.raises(KeyboardInterrupt):
        Run.open(tmp_path / "run", config, reporter=PullsThePlug(2)).train()
    scores = (tmp_path / "run" / "sensitivity.safetensors").stat().st_mtime_ns
    found = Run.open(tmp_path / "run", other).train()
    assert RunFolder.load(tmp_path / "run").config == other
    assert (tmp_path / "run" / "sensitivity.safetensors").stat().st_mtime_ns == scores
    expected = Run.open(tmp_path / "alone", other).train()
    assert [row.train_loss for row in found.metrics] == [row.train_loss for row in expected.metrics]
    with pytest.raises(RunFolderError, match=r"`recipe\.learning_rate` is 0\.001, not 0\.003"):
        Run.open(tmp_path / "run", config)


def test_a_training_under_way_keeps_its_recipe(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run.open(tmp_path / "run", config, reporter=PullsThePlug(5)).train()
    with pytest.raises(RunFolderError, match=r"`recipe\.learning_rate` is 0\.003, not 0\.001"):
        Run.open(tmp_path / "run", changed(config, recipe={"learning_rate": 1e-3}))


def test_scores_that_are_all_there_is_are_good_for_another_budget_but_not_for_other_scores(
    config: RunConfig, tmp_path: Path
) -> None:
    Run.open(tmp_path / "run", config).sensitivity()
    with pytest.raises(RunFolderError, match=r"`allocation\.method` is 'spt-lora', not 'layerwise'"):
        Run.open(tmp_path / "run", changed(config, allocation={"method": "layerwise"}))
    with pytest.raises(RunFolderError, match=r"`seed` is 0, not 1"):
        Run.open(tmp_path / "run", changed(config, seed=1))
    larger = Run.open(tmp_path / "run", changed(config, allocation={"budget": 10_000}))
    assert larger.allocation().trainable_params == 10_000
    with pytest.raises(RunFolderError, match=r"`allocation\.budget` is 10000, not 9000"):
        Run.open(tmp_path / "run", config)


def test_what_a_finished_run_was_killed_before_removing_is_removed(finished: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    for left in ("checkpoints/checkpoint-9", ".adapter.0123abcd"):
        (tmp_path / "run" / left).mkdir(parents=True)
    assert Run.load(tmp_path / "run").train() == read_result(finished.path)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in finished.path.iterdir()}


@pytest.mark.parametrize("output", ["adapter/merged.safetensors", "adapter/adapter_model.safetensors"])
def test_a_merged_checkpoint_is_never_written_over_what_it_is_made_from(
    finished: RunFolder, tmp_path: Path, output: str
) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ArgumentError, match="lies in .*adapter, which is read"):
        merge(tmp_path / "run" / "adapter", tmp_path / "run" / output)
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"weights")
    with pytest.raises(ArgumentError, match=r"base\.safetensors is read too, and would be overwritten"):
        merge(tmp_path / "run" / "adapter", base, checkpoint=base)
    base.unlink()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
