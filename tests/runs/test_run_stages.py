from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from small_runs import changed

from sensitune.allocation import Allocation
from sensitune.backbones import BackboneSpec, load_backbone
from sensitune.errors import (
    AdapterFileError,
    AllocationMismatchError,
    ArgumentError,
    DataError,
    RunFolderError,
)
from sensitune.runs import (
    METHODS,
    Run,
    RunConfig,
    RunFolder,
    _ingredients,
    compare,
    merge,
    predict,
    stability_of,
)
from sensitune.sensitivity import Sensitivity
from sensitune.training import AdapterManifest, load_tuned, predict_probabilities, read_result
from sensitune_command import main

HEAD = {"method": "head", "budget": None}


def copied(finished: RunFolder, path: Path) -> RunFolder:
    shutil.copytree(finished.path, path)
    return RunFolder.load(path)


def test_a_run_folder_holds_every_stage(finished: RunFolder) -> None:
    assert sorted(path.name for path in finished.path.iterdir()) == [
        "adapter",
        "adapter_chosen",
        "allocation.safetensors",
        "answers.safetensors",
        "metrics.jsonl",
        "run.yaml",
        "sensitivity.safetensors",
        "training.json",
    ]


def test_the_run_spends_its_budget_exactly(finished: RunFolder) -> None:
    allocation = Allocation.load(finished.allocation)
    result = read_result(finished.path)
    assert allocation.trainable_params == 9_000
    assert result is not None
    assert result.trained_params == 9_000 + allocation.head_params


def test_run_yaml_records_settings_and_versions(finished: RunFolder, config: RunConfig) -> None:
    values = yaml.safe_load(finished.settings.read_text())
    assert values["recorded"]["versions"].keys() >= {"python", "torch", "timm", "peft", "sensitune"}
    assert RunFolder.load(finished.path).config == config


def test_a_run_knows_how_many_modules_stay_under_resampling(config: RunConfig, tmp_path: Path) -> None:
    kept = changed(config, sensitivity={"num_batches": 4, "keep_halves": True})
    run = Run.open(tmp_path / "run", kept)
    allocation, stability = run.allocation(), stability_of(run)
    assert allocation is not None
    assert stability is not None
    assert stability.modules == len(allocation.structured)
    assert 0 < stability.modules_kept <= stability.modules
    without = Run.open(tmp_path / "without", changed(kept, sensitivity={"keep_halves": False}))
    assert stability_of(without) is None
    assert run.config.scoring.file_name != without.config.scoring.file_name


def test_finished_stages_are_not_computed_again(finished: RunFolder, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    Run(folder).train()
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


def test_a_stage_can_be_rerun_alone_with_the_same_result(finished: RunFolder, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "run")
    expected = Sensitivity.load(folder.sensitivity), Allocation.load(folder.allocation), read_result(folder.path)
    folder.sensitivity.unlink()
    sensitivity = Run(folder).sensitivity()
    assert all(torch.equal(score, expected[0].scores[name]) for name, score in sensitivity.scores.items())
    folder.allocation.unlink()
    assert Run(folder).allocation().structured == expected[1].structured
    for left in (folder.training.result, folder.training.metrics):
        left.unlink()
    again = Run(folder).train()
    assert expected[2] is not None
    assert [row.train_loss for row in again.metrics] == [row.train_loss for row in expected[2].metrics]


class PullsThePlug:
    def stage(self, title: str) -> None:
        pass

    def step(self, done: int, total: int | None, note: str = "") -> None:
        if done == 5 and "epoch" in note:
            raise KeyboardInterrupt


def test_an_interrupted_training_goes_on_to_the_same_weights(finished: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", finished.config)
    with pytest.raises(KeyboardInterrupt):
        Run(folder, reporter=PullsThePlug()).train()
    assert not folder.training.adapter.exists()
    assert Run(folder).train().resumed_after == 1
    for adapter in ("adapter", "adapter_chosen"):
        weights = [load_file(one.path / adapter / "adapter_model.safetensors") for one in (folder, finished)]
        assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_what_is_missing_is_made_but_a_training_that_is_to_be_evaluated(config: RunConfig, tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", config)
    with pytest.raises(RunFolderError, match=r"has no adapter yet\. Train it first: `sensitune train .*run`"):
        run.evaluate()
    assert not run.folder.sensitivity.exists()
    assert run.allocation().trainable_params == 9_000
    assert run.folder.sensitivity.exists()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is loaded from files or found out about the backbone, in order."""
    found: list[str] = []

    def count(name: str) -> None:
        original = getattr(_ingredients, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            found.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(_ingredients, name, counting)

    count("load_data")
    count("load_backbone")
    count("outline_model")
    monkeypatch.setattr("sensitune.training._manifest.load_backbone", None)  # evaluating asks for no other
    return found


def test_a_run_loads_its_backbone_and_its_images_once(config: RunConfig, tmp_path: Path, loaded: list[str]) -> None:
    run = Run.open(tmp_path / "run", config)
    result = run.train()
    assert run.evaluate().accuracy == result.test_accuracy_last
    assert loaded == ["load_data", "load_backbone", "outline_model"]


def test_a_comparison_loads_them_once_for_all_its_runs(config: RunConfig, tmp_path: Path, loaded: list[str]) -> None:
    compare(changed(config, recipe={"epochs": 1}), tmp_path, methods=("head", "full", "spt-lora"))
    assert loaded == ["load_data", "load_backbone", "outline_model"]


def test_ingredients_of_other_settings_are_refused(config: RunConfig, tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", config)
    other = changed(config, seed=1)
    with pytest.raises(
        ArgumentError, match="`ingredients` must be made of the run's own backbone, data, head start and seed"
    ):
        Run.open(tmp_path / "other", other, ingredients=run.ingredients)


def test_no_stage_changes_the_backbone_that_they_share(config: RunConfig, tmp_path: Path) -> None:
    settings = changed(config, allocation={"method": "full", "budget": None}, recipe={"epochs": 1})
    run = Run.open(tmp_path / "run", changed(settings, recipe={"head_start": "probe"}))
    before = {name: tensor.clone() for name, tensor in run.ingredients.backbone.model.state_dict().items()}
    run.sensitivity()
    run.train()
    run.evaluate()
    after = run.ingredients.backbone.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_folder_of_another_configuration_is_refused(finished: RunFolder, config: RunConfig) -> None:
    other = changed(config, allocation={"budget": 10_000}, seed=1)
    with pytest.raises(RunFolderError, match=r"`allocation\.budget` is 9000, not 10000, `seed` is 0, not 1\. Choose"):
        RunFolder.open(finished.path, other)


def test_a_folder_that_holds_settings_alone_is_taken_over(config: RunConfig, tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "run", changed(config, allocation={"rank": 2}))
    assert RunFolder.open(tmp_path / "run", config).config == config
    assert RunFolder.load(tmp_path / "run").config == config


def test_another_device_is_no_other_configuration(finished: RunFolder, config: RunConfig) -> None:
    other = changed(config, compute={"device": "auto", "num_workers": 1})
    assert RunFolder.open(finished.path, other).config.compute.num_workers == 1


def test_a_folder_of_something_else_is_refused(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(RunFolderError, match="is not empty and not a run folder"):
        RunFolder.open(tmp_path, config)
    with pytest.raises(RunFolderError, match="is not a run folder: it has"):
        RunFolder.load(tmp_path)


def test_evaluating_the_saved_adapter_gives_the_reported_accuracy(finished: RunFolder, tmp_path: Path) -> None:
    folder = copied(finished, tmp_path / "run")
    result = read_result(folder.path)
    assert result is not None
    assert Run(folder).evaluate().accuracy == result.test_accuracy_last
    assert Run(folder).evaluate(weights="chosen").accuracy == result.test_accuracy_chosen
    assert json.loads(folder.evaluation.read_text())["weights"] == "chosen"


def test_an_unknown_split_is_refused(finished: RunFolder) -> None:
    with pytest.raises(DataError, match=r"The data has no split 'tset'\. It has: train, validation, test"):
        Run(finished).evaluate(split="tset")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "auto"])  # which is one of the others
def test_every_method_trains_what_its_allocation_says(method: str, config: RunConfig, tmp_path: Path) -> None:
    peft = {"peft_type": "LORA", "r": 2} if method == "peft" else None
    settings = changed(
        config, allocation={"method": method, "budget": None, "rank": 2, "peft": peft}, recipe={"epochs": 2}
    )
    run = Run.open(tmp_path / method, settings)
    result, allocation, origin = run.train(), run.allocation(), run.origin()
    assert result.trained_params == origin.trainable_params + origin.head_params
    assert (allocation is None) == (method in {"full", "peft"})
    if allocation is not None:
        assert (allocation.trainable_params, allocation.head_params) == (origin.trainable_params, origin.head_params)
    model, _ = load_tuned(run.folder.training.adapter)
    assert model.get_nb_trainable_parameters()[0] >= 0


def test_a_limited_test_split_is_recorded(config: RunConfig, tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", changed(config, data={"max_test": 3}, allocation=HEAD))
    run.train()
    assert AdapterManifest.load(run.folder.training.adapter).origin.data["split_sizes"]["test"] == 3


def test_compared_methods_cost_what_the_uniform_lora_costs(config: RunConfig, tmp_path: Path) -> None:
    shared = changed(config, allocation={"budget": None}, recipe={"epochs": 2})
    compared = compare(shared, tmp_path, uniform_rank=1)
    assert [one.config.method.name for one in compared] == ["head", "lora", "spt-lora", "sparse"]
    assert len({one.allocation().trainable_params for one in compared[1:]}) == 1
    assert compared[0].allocation().trainable_params == 0
    assert len(list((tmp_path / "scores").iterdir())) == 1
    assert compared[2].known_sensitivity().gradients is not None
    assert compared[3].known_sensitivity() is not None


def test_a_preset_is_for_the_methods_of_spt_alone_in_a_comparison(config: RunConfig, tmp_path: Path) -> None:
    compared = compare(config, tmp_path, methods=("sparse", "lora", "spt-lora"), uniform_rank=1, preset="best")
    assert [one.config.recipe.in_place_rate for one in compared] == [0.1, 1.0, 0.1]
    assert [one.folder.lora_start.exists() for one in compared] == [False, False, True]
    # The scores without gradients do not do for the one that starts along them.
    sparse, spt = (compared[index].sensitivity() for index in (0, 2))
    assert (sparse.gradients is None, spt.gradients is None) == (True, False)


def test_a_comparison_takes_each_methods_default_preset(config: RunConfig, tmp_path: Path) -> None:
    compared = compare(config, tmp_path, methods=("sparse", "spt-lora"), uniform_rank=1)
    assert [one.config.recipe.in_place_rate for one in compared] == [1.0, 0.1]


def test_a_comparison_names_every_method_once(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"`methods` must name at least one method, and each once\. Got head, head"):
        compare(config, tmp_path, methods=("head", "head"))


def test_predictions_need_the_adapter_folder_alone(finished: RunFolder, images: Path) -> None:
    files = sorted(images.rglob("*.png"))[:5]
    predictions = predict(finished.training.adapter, files, device="cpu")
    model, manifest = load_tuned(finished.training.adapter)
    expected = predict_probabilities(model, [Image.open(file) for file in files], manifest.transform, device="cpu")
    torch.testing.assert_close(predictions.probabilities, expected)
    assert predictions.class_names == ("blue", "green", "red")
    assert predictions.files == tuple(files)
    name, probability = predictions.best(0)
    assert probability == predictions.probabilities[0].max()
    assert name == predictions.class_names[int(predictions.probabilities[0].argmax())]


def test_an_unreadable_image_is_named(finished: RunFolder, images: Path, tmp_path: Path) -> None:
    good = next(images.rglob("*.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:200])
    with pytest.raises(DataError, match=r"broken\.png cannot be read .* or use --skip-unreadable"):
        predict(finished.training.adapter, [good, broken], device="cpu")
    predictions = predict(finished.training.adapter, [broken, good], device="cpu", skip_unreadable=True)
    assert (predictions.files, predictions.skipped) == ((good,), (broken,))


def test_a_merged_checkpoint_answers_like_the_adapter(finished: RunFolder, images: Path, tmp_path: Path) -> None:
    path = merge(finished.training.adapter, tmp_path / "merged.safetensors")
    spec = BackboneSpec("vit_tiny_patch16_224", checkpoint=str(path))
    merged = load_backbone(spec, num_classes=3, keep_head=True)
    _, manifest = load_tuned(finished.training.adapter)
    files = sorted(images.rglob("*.png"))[:6]
    expected = predict(finished.training.adapter, files, device="cpu").probabilities
    found = predict_probabilities(merged.model, [Image.open(file) for file in files], manifest.transform, device="cpu")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert merged.class_names == ("blue", "green", "red")


def test_an_adapter_folder_says_nothing_about_its_makers_machine(
    finished: RunFolder, config: RunConfig, images: Path, tmp_path: Path
) -> None:
    base = merge(finished.training.adapter, tmp_path / "weights" / "base.safetensors")
    backbone = {"checkpoint": str(base), "pretrained": True, "num_blocks": None}
    settings = changed(config, backbone=backbone, allocation=HEAD)
    run = Run.open(tmp_path / "run", settings)
    run.train()
    folder = run.folder
    files = [file for file in folder.training.adapter.rglob("*") if file.is_file()]
    assert len(files) >= 4
    for place in (tmp_path, images, Path.home()):
        assert not [file.name for file in files if str(place).encode() in file.read_bytes()]
    manifest = AdapterManifest.load(folder.training.adapter)
    assert (manifest.backbone.checkpoint, manifest.origin.data["source"]) == ("base.safetensors", "squares")
    # In its run folder it finds the weights again; elsewhere it asks for them.
    picture = next(images.rglob("*.png"))
    expected = predict(folder.training.adapter, [picture], device="cpu").probabilities
    alone = tmp_path / "alone"
    shutil.copytree(folder.training.adapter, alone)
    with pytest.raises(
        ArgumentError, match=r"was tuned on the weight file base\.safetensors\. Give it as `checkpoint`"
    ):
        predict(alone, [picture], device="cpu")
    torch.testing.assert_close(predict(alone, [picture], checkpoint=base, device="cpu").probabilities, expected)


def test_a_test_after_the_training_goes_into_the_model_card(config: RunConfig, tmp_path: Path) -> None:
    untested = replace(config, data=replace(config.data, test=False), recipe=replace(config.recipe, epochs=1))
    run = Run.open(tmp_path / "run", untested)
    run.train()
    card = run.folder.training.adapter / "README.md"
    before = card.read_text()
    assert re.search(r"^\| last epoch \(these\) \| 1 \| \d+\.\d% \| – \|$", before, flags=re.MULTILINE)
    found = run.evaluate(split="test")
    row = re.search(r"^\| last epoch \(these\) .*$", card.read_text(), flags=re.MULTILINE)
    assert row is not None
    assert row[0].endswith(f" {found.accuracy:.1%} |")
    assert card.read_text().replace(row[0], "") == re.sub(r"\| last epoch \(these\) .*", "", before)


def test_what_the_model_card_says_to_do_works(
    finished: RunFolder,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (finished.training.adapter / "README.md").read_text()
    shutil.copytree(finished.training.adapter, tmp_path / "path" / "to" / "this" / "folder")
    picture = next(images.rglob("*.png"))
    shutil.copy(picture, tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    expected, _ = predict(finished.training.adapter, [picture], device="cpu").best(0)
    python, *_ = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(python, {})
    assert capsys.readouterr().out == f"{expected}\n"
    (command,) = re.findall(r"```sh\nsensitune (.*?)\n```", page)
    assert main(shlex.split(command)) == 0
    assert f"picture.png,{expected}," in capsys.readouterr().out


def test_another_base_is_refused(finished: RunFolder, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(finished.training.adapter, adapter)
    manifest = AdapterManifest.load(adapter)
    replace(manifest, weights_hash="0" * 64).save(adapter)
    with pytest.raises(AllocationMismatchError, match=r"was tuned on vit_tiny_patch16_224 with weights 000000000000"):
        load_tuned(adapter)


def test_a_folder_without_a_manifest_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"is not an adapter folder of a Sensitune run: it has"):
        load_tuned(tmp_path)


def test_a_damaged_adapter_is_refused(finished: RunFolder, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(finished.training.adapter, adapter)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(AdapterFileError, match=r"adapter_model\.safetensors is damaged or was changed"):
        load_tuned(adapter)
    (adapter / "sensitune.json").write_text("{}")
    with pytest.raises(AdapterFileError, match=r"sensitune\.json: The setting `backbone` is missing"):
        load_tuned(adapter)


def test_a_full_disk_leaves_no_half_allocation(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    folder = copied(finished, tmp_path / "run")
    folder.allocation.unlink()
    monkeypatch.setattr("sensitune._tensor_file.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        Run(folder).allocation()
    assert not [path for path in folder.path.iterdir() if "allocation" in path.name]
