from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification
from transformers.utils import logging

from sensitune.allocation import random_allocation
from sensitune.data import ImageData, ImageTransform
from sensitune.errors import ArgumentError, MemoryLimitError, NonFiniteError, RunFolderError
from sensitune.sites import outline_model
from sensitune.training import (
    Answers,
    Evaluation,
    Recipe,
    TrainingProgress,
    evaluate,
    load_weights,
    read_metrics,
    read_result,
    train,
)
from sensitune.tuner import SptConfig

RECIPE = Recipe(epochs=4, warmup_share=0.25, batch_size=4, learning_rate=1e-2)
MakeModel = Callable[[], PeftModel]


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


class Interrupted(Exception):
    """Somebody pulled the plug."""


def test_a_run_leaves_adapters_metrics_and_a_result(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    model = make_model()
    result = train(model, data, RECIPE, tmp_path, transform=transform, device="cpu", seed=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter",
        "adapter_chosen",
        "answers.safetensors",
        "metrics.jsonl",
        "training.json",
    ]
    answers = Answers.load(tmp_path / "answers.safetensors")
    assert answers.labels.tolist() == list(data.dataset["test"]["label"])
    assert (answers.labels == answers.predictions).double().mean().item() == result.test_accuracy_last
    assert [row.epoch for row in result.metrics] == [1, 2, 3, 4]
    assert result.metrics[-1].train_loss < result.metrics[0].train_loss
    assert read_metrics(tmp_path / "metrics.jsonl") == result.metrics
    assert read_result(tmp_path) == result
    assert (result.device, result.precision, result.seed, result.resumed_after) == ("cpu", "float32", 5, None)


def test_the_test_accuracies_belong_to_the_saved_weights(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    model = make_model()
    result = train(model, data, RECIPE, tmp_path, transform=transform, device="cpu")
    last = trained_tensors(model)
    for folder, accuracy in (("adapter_chosen", result.test_accuracy_chosen), ("adapter", result.test_accuracy_last)):
        load_weights(model, tmp_path / folder)
        assert evaluate(model, data.dataset["test"], transform, device="cpu").accuracy == accuracy
    assert all(torch.equal(value, last[name]) for name, value in trained_tensors(model).items())


def test_the_chosen_epoch_is_the_first_with_the_best_validation_accuracy(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    result = train(make_model(), data, RECIPE, tmp_path, transform=transform, device="cpu")
    accuracies = [row.validation_accuracy for row in result.metrics]
    assert result.chosen_epoch == accuracies.index(max(a for a in accuracies if a is not None)) + 1


def test_a_run_without_validation_chooses_nothing(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    train_only = ImageData(datasets.DatasetDict({"train": data.dataset["train"]}), data.class_names)
    result = train(make_model(), train_only, RECIPE, tmp_path, transform=transform, device="cpu")
    assert (result.chosen_epoch, result.test_accuracy_last, result.test_accuracy_chosen) == (None, None, None)
    assert not (tmp_path / "adapter_chosen").exists()


def test_a_run_may_look_at_the_validation_split_at_its_end_alone(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    every = train(make_model(), data, RECIPE, tmp_path / "every", transform=transform, device="cpu")
    at_the_end = replace(RECIPE, validate="end")
    last = train(make_model(), data, at_the_end, tmp_path / "last", transform=transform, device="cpu")
    assert [row.validation_accuracy is None for row in last.metrics] == [True] * (RECIPE.epochs - 1) + [False]
    assert last.chosen_epoch == RECIPE.epochs
    assert last.validation_accuracy_last == every.validation_accuracy_last
    assert last.test_accuracy_chosen == last.test_accuracy_last == every.test_accuracy_last


@pytest.mark.parametrize("stop_at_step", [5, 8, 11])
def test_a_resumed_run_ends_like_one_in_one_piece(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path, stop_at_step: int
) -> None:
    def pull_the_plug(progress: TrainingProgress) -> None:
        if progress.step == stop_at_step:
            raise Interrupted

    whole_model, resumed_model = make_model(), make_model()
    whole = train(whole_model, data, RECIPE, tmp_path / "whole", transform=transform, device="cpu")
    folder = tmp_path / "resumed"
    with pytest.raises(Interrupted):
        train(make_model(), data, RECIPE, folder, transform=transform, device="cpu", progress=pull_the_plug)
    resumed = train(resumed_model, data, RECIPE, folder, transform=transform, device="cpu")

    assert resumed.resumed_after == (stop_at_step - 1) // 4
    expected = trained_tensors(whole_model)
    assert all(torch.equal(value, expected[name]) for name, value in trained_tensors(resumed_model).items())
    assert [(row.epoch, row.train_loss, row.validation_accuracy, row.learning_rate) for row in resumed.metrics] == [
        (row.epoch, row.train_loss, row.validation_accuracy, row.learning_rate) for row in whole.metrics
    ]
    assert resumed.test_accuracy_chosen == whole.test_accuracy_chosen


def test_a_run_interrupted_after_its_last_epoch_only_needs_its_tests(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pull_the_plug(*_: object) -> None:
        raise Interrupted

    whole_model, resumed_model = make_model(), make_model()
    whole = train(whole_model, data, RECIPE, tmp_path / "whole", transform=transform, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr("sensitune.training._train._Run.test", pull_the_plug)
        with pytest.raises(Interrupted):
            train(make_model(), data, RECIPE, tmp_path / "resumed", transform=transform, device="cpu")
    resumed = train(resumed_model, data, RECIPE, tmp_path / "resumed", transform=transform, device="cpu")
    assert (resumed.resumed_after, resumed.last_epoch) == (4, 4)
    assert resumed.test_accuracy_last == whole.test_accuracy_last
    expected = trained_tensors(whole_model)
    assert all(torch.equal(value, expected[name]) for name, value in trained_tensors(resumed_model).items())


def test_checkpoints_hold_only_what_trains(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    def pull_the_plug(progress: TrainingProgress) -> None:
        if progress.step == 6:
            raise Interrupted

    model = make_model()
    with pytest.raises(Interrupted):
        train(model, data, RECIPE, tmp_path, transform=transform, device="cpu", progress=pull_the_plug)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-4"
    trained = sum(value.numel() for value in trained_tensors(model).values())
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 4 * trained + 4096
    assert not (checkpoint / "training_args.bin").exists()


def test_a_checkpoint_of_another_recipe_is_refused(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    other = {"recipe": RECIPE.to_dict() | {"learning_rate": 0.5}, "seed": 0, "num_train_images": 14}
    (tmp_path / "checkpoints" / "recipe.json").write_text(json.dumps(other))
    with pytest.raises(RunFolderError, match=r"holds a run with `learning_rate` 0\.5, not 0\.01\. Train with the same"):
        train(make_model(), data, RECIPE, tmp_path, transform=transform, device="cpu")
    train(make_model(), data, RECIPE, tmp_path, transform=transform, device="cpu", resume=False)


def test_a_checkpoint_of_another_seed_is_refused(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    def pull_the_plug(_: TrainingProgress) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train(make_model(), data, RECIPE, tmp_path, transform=transform, device="cpu", progress=pull_the_plug)
    with pytest.raises(RunFolderError, match=r"holds a run with `seed` 0, not 1\."):
        train(make_model(), data, RECIPE, tmp_path, transform=transform, device="cpu", seed=1)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_an_impossible_seed_is_refused(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path, seed: int
) -> None:
    with pytest.raises(ArgumentError, match=rf"`seed` must be a whole number from 0 to 4294967295\. Got {seed}\."):
        train(make_model(), data, RECIPE, tmp_path, transform=transform, device="cpu", seed=seed)


def test_the_random_state_before_a_run_changes_nothing(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    models = make_model(), make_model()
    for index, model in enumerate(models):
        torch.manual_seed(index)
        train(model, data, RECIPE, tmp_path / str(index), transform=transform, device="cpu")
    first, second = map(trained_tensors, models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_frozen_weights_stay_bit_equal(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    train(model, data, RECIPE, tmp_path, transform=transform, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters() if name in before)


def test_a_run_is_silent_and_leaves_the_log_level(
    make_model: MakeModel,
    data: ImageData,
    transform: ImageTransform,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    level = logging.get_verbosity()
    train(make_model(), data, RECIPE, tmp_path, transform=transform, device="cpu")
    assert logging.get_verbosity() == level
    assert capfd.readouterr() == ("", "")


def test_the_recorded_learning_rates_are_the_recipes(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    result = train(make_model(), data, RECIPE, tmp_path, transform=transform, device="cpu")
    rates = [row.learning_rate for row in result.metrics]
    # The last step of the warm-up epoch is its fourth of four: three quarters of the way up.
    assert rates[0] == pytest.approx(1e-6 + (1e-2 - 1e-6) * 3 / 4)
    assert rates[1] > rates[2] > rates[3] > 1e-5


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    def poison(progress: TrainingProgress) -> None:
        if progress.step == 5:
            with torch.no_grad():
                model.base_model.model.head.modules_to_save["default"].bias.fill_(float("nan"))

    model = make_model()
    with pytest.raises(NonFiniteError, match=r"must stay finite\. Got nan in step 6 of epoch 2\. Lower `learning"):
        train(model, data, RECIPE, tmp_path, transform=transform, device="cpu", progress=poison)


def test_a_step_that_does_not_fit_into_memory_names_what_to_lower(
    data: ImageData, make_model: MakeModel, transform: ImageTransform, tmp_path: Path
) -> None:
    model = make_model()

    def greedy(module: nn.Module, *_: object) -> None:
        if module.training:
            torch.empty(2**50)

    model.register_forward_pre_hook(greedy)
    with pytest.raises(MemoryLimitError, match="not enough memory for a training step. Lower `batch_size`, the rank"):
        train(model, data, RECIPE, output_dir=tmp_path, transform=transform)


def test_weights_without_answers_stop_the_run_at_the_validation(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    def poison(progress: TrainingProgress) -> None:
        if progress.step == 8:
            with torch.no_grad():
                model.base_model.model.head.modules_to_save["default"].bias.fill_(float("nan"))

    model = make_model()
    with pytest.raises(
        NonFiniteError, match=r"validation loss must be finite\. Got nan after epoch 2\. Lower `learning"
    ):
        train(model, data, RECIPE, tmp_path, transform=transform, device="cpu", progress=poison)


def poisoned_after(step: int, model: PeftModel) -> Callable[[TrainingProgress], None]:
    def poison(progress: TrainingProgress) -> None:
        if progress.step == step:
            with torch.no_grad():
                model.base_model.model.head.modules_to_save["default"].bias.fill_(float("nan"))

    return poison


def test_values_that_the_last_step_breaks_are_no_result_where_nothing_is_evaluated(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    train_only = ImageData(datasets.DatasetDict({"train": data.dataset["train"]}), data.class_names)
    model = make_model()
    with pytest.raises(NonFiniteError, match=r"`.*head.*bias` is not, after the last step\. Lower `learning_rate`"):
        train(
            model, train_only, RECIPE, tmp_path, transform=transform, device="cpu", progress=poisoned_after(16, model)
        )
    assert read_result(tmp_path) is None
    assert not (tmp_path / "adapter").exists()


def test_a_test_loss_that_is_not_finite_is_no_result(
    make_model: MakeModel,
    data: ImageData,
    transform: ImageTransform,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_answers = Evaluation(1 / 3, float("nan"), 7, torch.zeros(7), torch.zeros(7), torch.zeros(7))
    monkeypatch.setattr("sensitune.training._train.measure", lambda *_, **__: no_answers)
    with pytest.raises(
        NonFiniteError, match=r"The test loss must be finite\. Got nan after the last epoch\. Lower `lea"
    ):
        train(make_model(), data, RECIPE, tmp_path, transform=transform, device="cpu")
    assert read_result(tmp_path) is None


def test_the_folder_of_a_training_that_diverged_takes_the_recipe_that_it_advises(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    model = make_model()
    with pytest.raises(NonFiniteError):
        train(model, data, RECIPE, tmp_path, transform=transform, device="cpu", progress=poisoned_after(9, model))
    lower, alone = replace(RECIPE, learning_rate=1e-3), tmp_path / "alone"
    found = train(make_model(), data, lower, tmp_path, transform=transform, device="cpu")
    expected = train(make_model(), data, lower, alone, transform=transform, device="cpu")
    assert [row.train_loss for row in found.metrics] == [row.train_loss for row in expected.metrics]
    assert found.resumed_after is None


# peft 0.21.2 reads a property that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_transformers_model_trains_too(data: ImageData, transform: ImageTransform, tmp_path: Path) -> None:
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.num_labels = 3
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    model = get_peft_model(ViTForImageClassification(config), lora)
    result = train(model, data, RECIPE, tmp_path, transform=transform, device="cpu")
    assert result.metrics[-1].train_loss < result.metrics[0].train_loss


def test_a_plain_module_trains_and_resumes(data: ImageData, transform: ImageTransform, tmp_path: Path) -> None:
    def pull_the_plug(progress: TrainingProgress) -> None:
        if progress.step == 9:
            raise Interrupted

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))

    whole, resumed = build(), build()
    train(whole, data, RECIPE, tmp_path / "whole", transform=transform, device="cpu")
    with pytest.raises(Interrupted):
        train(build(), data, RECIPE, tmp_path / "r", transform=transform, device="cpu", progress=pull_the_plug)
    train(resumed, data, RECIPE, tmp_path / "r", transform=transform, device="cpu")
    assert all(torch.equal(whole.state_dict()[name], value) for name, value in resumed.state_dict().items())
    assert torch.equal(whole.state_dict()["1.running_mean"], torch.zeros(4))


@pytest.mark.parametrize("settings", [{"mixup": 0.5, "label_smoothing": 0.1}, {"precision": "bfloat16"}])
def test_options_of_the_recipe_train(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path, settings: dict[str, object]
) -> None:
    recipe = Recipe(**(RECIPE.to_dict() | settings | {"clip_grad_norm": 1.0}))
    result = train(make_model(), data, recipe, tmp_path, transform=transform, device="cpu")
    assert result.precision == settings.get("precision", "float32")
    assert all(torch.isfinite(torch.tensor(row.train_loss)) for row in result.metrics)


def test_a_model_with_other_outputs_than_classes_is_refused(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    four = ImageData(data.dataset, ("red", "green", "blue", "grey"))
    with pytest.raises(ArgumentError, match=r"each of the data's 4 classes\. Got 3\. Build it with `num_classes=4`"):
        train(make_model(), four, RECIPE, tmp_path, transform=transform, device="cpu")


def test_a_numbered_device_is_refused(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ArgumentError, match=r"must not be numbered for training\. Got cuda:1\. Set CUDA_VISIBLE_DEV"):
        train(make_model(), data, RECIPE, tmp_path, transform=transform, device="cuda:1")


def test_a_frozen_model_is_refused(
    make_model: MakeModel, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match="must have parameters that require a gradient"):
        train(make_model().requires_grad_(False), data, RECIPE, tmp_path, transform=transform, device="cpu")


def test_an_adapter_with_a_name_of_its_own_is_refused(
    make_base: Callable[[], nn.Module], data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    model = get_peft_model(make_base(), LoraConfig(r=2, target_modules=["qkv"]), adapter_name="mine")
    with pytest.raises(ArgumentError, match=r"one active adapter, called 'default', .* Got mine\."):
        train(model, data, RECIPE, tmp_path, transform=transform, device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_checkpoint(
    make_model: MakeModel,
    data: ImageData,
    transform: ImageTransform,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.Trainer._save_optimizer_and_scheduler", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train(make_model(), data, RECIPE, tmp_path, transform=transform, device="cpu")
    assert not list(tmp_path.glob("checkpoints/checkpoint-*"))


def test_values_in_place_stay_at_a_rate_of_zero_and_new_weights_do_not(
    make_base: Callable[[], nn.Module], data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    base = make_base()
    allocation = random_allocation(outline_model(base), budget=400, rank=2)
    assert allocation.structured
    assert allocation.sparse
    model = get_peft_model(base, SptConfig.from_allocation(allocation))
    before = trained_tensors(model)
    train(model, data, replace(RECIPE, in_place_rate=0.0), tmp_path, transform=transform, device="cpu")
    changed = {name for name, value in trained_tensors(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "spt_sparse" not in name and "spt_whole" not in name}
