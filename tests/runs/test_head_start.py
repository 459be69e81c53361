from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import changed
from torch import Tensor

from sensitune.backbones import load_backbone
from sensitune.data import batches
from sensitune.errors import ArgumentError
from sensitune.runs import Run, RunConfig
from sensitune.sensitivity import estimate_sensitivity
from sensitune.training import evaluate, fit_head, read_result


@pytest.fixture
def fitted(config: RunConfig) -> RunConfig:
    return changed(config, recipe={"head_start": "probe"})


def head_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith("head.")}


def test_the_head_is_fitted_on_the_training_images_its_penalty_chosen_on_the_validation_images(
    fitted: RunConfig, tmp_path: Path
) -> None:
    run = Run.open(tmp_path / "run", fitted)
    splits, transform = run.ingredients.data.dataset, run.ingredients.transform
    expected = load_backbone(fitted.backbone, num_classes=3, seed=0).model
    fit_head(expected, *(batches(splits[name], transform, batch_size=64) for name in ("train", "validation")))
    torch.testing.assert_close(run.ingredients.backbone.model.state_dict(), expected.state_dict())


def test_scores_and_training_start_from_the_fitted_head(fitted: RunConfig, tmp_path: Path) -> None:
    still = changed(fitted, recipe={"epochs": 1, "learning_rate": 1e-9, "final_learning_rate": 0.0})
    run = Run.open(tmp_path / "run", still)
    model, images = run.ingredients.fresh_backbone().model, run.ingredients.data.dataset["train"]
    expected = estimate_sensitivity(model, batches(images, run.ingredients.transform, batch_size=4, num_batches=2))
    torch.testing.assert_close(dict(run.sensitivity().scores), dict(expected.scores))
    trained = run.train()
    start = evaluate(model, run.ingredients.data.dataset["test"], run.ingredients.transform, device="cpu")
    assert trained.test_accuracy_last == start.accuracy


def test_scores_of_another_head_have_another_file(config: RunConfig, fitted: RunConfig) -> None:
    assert config.scoring.file_name != fitted.scoring.file_name


def test_a_recipe_of_no_epochs_is_a_linear_probe(fitted: RunConfig, tmp_path: Path) -> None:
    probe = changed(fitted, allocation={"method": "head", "budget": None}, recipe={"epochs": 0})
    run = Run.open(tmp_path / "run", probe)
    found = run.train()
    model, data = run.ingredients.backbone.model, run.ingredients.data.dataset
    reached = {
        split: evaluate(model, data[split], run.ingredients.transform, device="cpu")
        for split in ("train", "validation", "test")
    }
    (row,) = found.metrics
    assert (row.epoch, row.learning_rate) == (0, 0.0)
    assert row.train_loss == pytest.approx(reached["train"].loss, rel=1e-5)
    assert row.validation_accuracy == reached["validation"].accuracy
    assert (found.last_epoch, found.chosen_epoch) == (0, 0)
    assert found.test_accuracy_last == found.test_accuracy_chosen == reached["test"].accuracy
    assert found.images_per_second == 0
    assert read_result(run.folder.path) == found
    assert run.evaluate().accuracy == reached["test"].accuracy
    card = (run.folder.training.adapter / "README.md").read_text(encoding="utf-8")
    assert "The head started fitted to the frozen backbone's features. Nothing was trained after that." in card


def test_no_epochs_with_a_random_head_are_refused(config: RunConfig) -> None:
    with pytest.raises(ArgumentError, match="`epochs` must be at least 1 where the head starts at random"):
        changed(config, recipe={"epochs": 0})
