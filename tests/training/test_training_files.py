"""What a training leaves in its folder is read back whole, or refused in a sentence that names the file."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors.torch import load_file

from sensitune.data import ImageData, ImageTransform
from sensitune.errors import RunFolderError
from sensitune.training import Recipe, TrainingProgress, read_metrics, read_result, train
from sensitune.training._result import EpochMetrics

RECIPE = Recipe(epochs=3, batch_size=8)
Train = Callable[..., None]


class Interrupted(Exception):
    """Somebody pulled the plug."""


@pytest.fixture
def run(make_model: Callable[[], PeftModel], data: ImageData, transform: ImageTransform, tmp_path: Path) -> Train:
    """Trains, or goes on training, in the test's folder; up to a step if one is given."""

    def pull_the_plug(progress: TrainingProgress, stop: int) -> None:
        if progress.step == stop:
            raise Interrupted

    def start(stop: int | None = None) -> None:
        told = None if stop is None else lambda progress: pull_the_plug(progress, stop)
        train(make_model(), data, RECIPE, tmp_path, transform=transform, device="cpu", progress=told)

    return start


def one_sentence(raised: pytest.ExceptionInfo[RunFolderError], path: Path) -> None:
    message = str(raised.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert raised.type is RunFolderError


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "3", '{"last_epoch": 3}', '{"last_epoch": "3"}', "\x00", "{" * 10_000]
)
def test_a_damaged_result_is_refused(run: Train, tmp_path: Path, damage: str) -> None:
    run()
    (tmp_path / "training.json").write_text(damage)
    with pytest.raises(RunFolderError) as raised:
        read_result(tmp_path)
    one_sentence(raised, tmp_path / "training.json")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("test_accuracy_last", 1.5, "`test_accuracy_last` must be a number of at least 0 and at most 1, or null"),
        ("trained_params", -1, "`trained_params` must be a whole number of at least 1. Got -1"),
        ("precision", "float16", "`precision` must be one of float32, bfloat16. Got 'float16'"),
        ("devise", "cpu", "`devise` is not a setting. The closest one is `device`"),
        ("chosen_epoch", 4, "metrics.jsonl holds 3 epochs, training.json tells of 3"),
        ("last_epoch", 2, "metrics.jsonl holds 3 epochs, training.json tells of 2"),
    ],
)
def test_a_result_that_cannot_be_is_refused(
    run: Train, tmp_path: Path, setting: str, value: object, message: str
) -> None:
    run()
    path = tmp_path / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    with pytest.raises(RunFolderError) as raised:
        read_result(tmp_path)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "damage",
    ["{}", "epoch 1", '{"epoch": 1, "train_loss": "low", "learning_rate": 0.1, "seconds": 1.0}', "[" * 100_000, "\xff"],
)
def test_damaged_metrics_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(damage.encode("latin-1"))
    with pytest.raises(RunFolderError) as raised:
        read_metrics(path)
    one_sentence(raised, path)


def test_metrics_that_lack_an_epoch_are_refused(run: Train, tmp_path: Path) -> None:
    run()
    path = tmp_path / "metrics.jsonl"
    first, _, last = path.read_text().splitlines()
    path.write_text(f"{first}\n{last}\n")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl must hold the epochs from 1 on, one a line\. Restore it"):
        read_metrics(path)
    path.write_text(f"{first}\n")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl holds 1 epochs, training\.json tells of 3\. Restore"):
        read_result(tmp_path)


def trained(folder: Path) -> tuple[list[float], dict[str, object]]:
    """What a training has come to."""
    result = read_result(folder)
    assert result is not None
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    return [row.train_loss for row in result.metrics], {name: value.tolist() for name, value in weights.items()}


@pytest.mark.parametrize("lines", [0, 1])
def test_a_checkpoint_whose_epochs_are_not_in_the_metrics_does_not_count(
    run: Train, tmp_path: Path, lines: int
) -> None:
    run()
    expected = trained(tmp_path)
    (tmp_path / "training.json").unlink()
    with pytest.raises(Interrupted):
        run(stop=5)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:lines]))
    run()
    assert trained(tmp_path) == expected
    assert read_result(tmp_path).resumed_after is None  # there was no other


CHECKPOINT_FILES = ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "torn"])
def test_an_incomplete_checkpoint_counts_as_absent_and_the_one_before_it_is_taken(
    run: Train, tmp_path: Path, name: str, damage: str
) -> None:
    run()
    expected = trained(tmp_path)
    (tmp_path / "training.json").unlink()
    with pytest.raises(Interrupted):
        run(stop=3)
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(checkpoints, tmp_path / "before")
    with pytest.raises(Interrupted):
        run(stop=5)
    first, second = (next((folder).glob("checkpoint-*")) for folder in (tmp_path / "before", checkpoints))
    assert int(first.name.partition("-")[2]) < int(second.name.partition("-")[2])
    for kept in (tmp_path / "before").iterdir():  # as if the second had been written just now
        if not (checkpoints / kept.name).exists():
            shutil.copytree(kept, checkpoints / kept.name)
    torn = second / name
    content = torn.read_bytes()
    torn.unlink()
    if damage != "missing":
        torn.write_bytes(content[: len(content) // 2] if damage == "torn" else b"")
    run()
    assert trained(tmp_path) == expected
    assert read_result(tmp_path).resumed_after == 1


@pytest.mark.parametrize("damage", ["", "[]", '{"recipe": {"epochs": 0}}'])
def test_a_damaged_record_of_the_setting_is_refused(run: Train, tmp_path: Path, damage: str) -> None:
    with pytest.raises(Interrupted):
        run(stop=5)
    path = tmp_path / "checkpoints/recipe.json"
    path.write_text(damage)
    with pytest.raises(RunFolderError) as raised:
        run()
    one_sentence(raised, path)


def test_no_metric_of_a_finished_epoch_is_infinite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"epoch": 1, "train_loss": math.inf, "learning_rate": 0.1, "seconds": 1.0}))
    with pytest.raises(RunFolderError, match=r"`train_loss` must be a finite number\. Got inf"):
        read_metrics(path)


def test_a_folder_without_a_finished_run_has_no_result(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    assert read_metrics(tmp_path / "metrics.jsonl") == ()


def test_what_was_written_comes_back(run: Train, tmp_path: Path) -> None:
    run()
    result = read_result(tmp_path)
    assert result is not None
    assert result.metrics == read_metrics(tmp_path / "metrics.jsonl")
    assert all(isinstance(row, EpochMetrics) for row in result.metrics)
