"""A run on an image model of transformers, from the scores to a folder that transformers itself reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_image_models import saved, small_swin, small_vit
from small_runs import changed
from transformers import AutoImageProcessor, AutoModelForImageClassification

from sensitune.backbones import BackboneSpec, load_backbone
from sensitune.errors import AllocationMismatchError, ArgumentError, ModelError
from sensitune.runs import Run, RunConfig, RunFolder, compare, export, merge, predict
from sensitune.training import AdapterManifest, load_tuned
from sensitune_command import main

# PEFT reads it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(small_vit(), tmp_path_factory.mktemp("models") / "my_vit")


@pytest.fixture(scope="module")
def on_vit(config: RunConfig, vit: Path) -> RunConfig:
    return changed(
        config,
        backbone=BackboneSpec(str(vit)),
        data={"normalize": "model"},
        allocation={"budget": 700, "rank": 2, "servable": True},
        recipe={"drop_path": 0.0, "learning_rate": 0.03, "epochs": 6},
    )


@pytest.fixture(scope="module")
def tuned(on_vit: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = Run.open(tmp_path_factory.mktemp("runs") / "vit", on_vit)
    run.train()
    return run.folder


@pytest.fixture(scope="module")
def files(images: Path) -> list[Path]:
    return sorted(images.rglob("*.png"))[:6]


def test_its_own_normalisation_is_taken_and_it_learns(tuned: RunFolder) -> None:
    transform = Run(tuned).ingredients.transform
    assert transform.mean == pytest.approx((0.5, 0.4, 0.3))
    result = Run(tuned).train()
    assert result.metrics[-1].train_loss < result.metrics[0].train_loss


def test_its_adapter_names_no_place_of_this_machine(tuned: RunFolder, vit: Path) -> None:
    manifest = AdapterManifest.load(tuned.training.adapter)
    assert manifest.backbone == BackboneSpec("./my_vit", checkpoint="my_vit")
    for path in tuned.training.adapter.iterdir():
        assert str(vit.parent).encode() not in path.read_bytes(), path.name
    assert "the folder `my_vit`" in (tuned.training.adapter / "README.md").read_text()


def test_predicting_needs_the_folder_if_the_adapter_has_left_its_run(
    tuned: RunFolder, vit: Path, files: list[Path], tmp_path: Path
) -> None:
    beside = predict(tuned.training.adapter, files)
    moved = shutil.copytree(tuned.training.adapter, tmp_path / "adapter")
    with pytest.raises(ArgumentError, match=r"was tuned on the folder my_vit\. Give it as `checkpoint`\."):
        predict(moved, files)
    assert torch.equal(predict(moved, files, checkpoint=vit).probabilities, beside.probabilities)
    other = saved(small_vit(layer_norm_eps=1e-3), tmp_path / "other")
    tensors = load_backbone(str(other), num_classes=3).model
    with torch.no_grad():
        tensors.vit.layernorm.weight += 1
    saved(tensors, other)
    with pytest.raises(AllocationMismatchError, match="was tuned on ./my_vit with weights"):
        predict(moved, files, checkpoint=other)


def test_merged_it_is_a_folder_that_transformers_reads_alone(
    tuned: RunFolder, files: list[Path], tmp_path: Path
) -> None:
    expected = predict(tuned.training.adapter, files)
    assert expected.probabilities.std() > 0.1
    folder = merge(tuned.training.adapter, tmp_path / "merged")
    assert sorted(each.name for each in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    model = AutoModelForImageClassification.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor([Image.open(file).convert("RGB") for file in files], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = model(pixels).logits.softmax(-1)
    # transformers resizes on tensors, which rounds otherwise than Pillow.
    torch.testing.assert_close(found, expected.probabilities, rtol=0, atol=5e-3)
    assert tuple(model.config.id2label.values()) == expected.class_names == ("blue", "green", "red")
    again = load_backbone(BackboneSpec(str(folder)), num_classes=3, keep_head=True)
    assert again.class_names == expected.class_names
    assert again.weights_hash != Run(tuned).ingredients.backbone.weights_hash


def test_a_merged_model_replaces_nothing(tuned: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"is a folder\. Got .*merged\.safetensors"):
        merge(tuned.training.adapter, tmp_path / "merged.safetensors")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(ArgumentError, match=r"mine is not empty"):
        merge(tuned.training.adapter, tmp_path / "mine")


def test_exported_it_predicts_the_same(tuned: RunFolder, files: list[Path], tmp_path: Path) -> None:
    found = export(tuned.training.adapter, tmp_path / "lora")
    assert found.lora.saved_modules == ("classifier",)
    first, second = (
        predict(tuned.training.adapter, files),
        predict(tmp_path / "lora", files, checkpoint=tuned_base(tuned)),
    )
    torch.testing.assert_close(second.probabilities, first.probabilities, rtol=0, atol=1e-5)


def tuned_base(folder: RunFolder) -> str:
    return folder.config.backbone.name


def test_methods_are_compared_on_it(on_vit: RunConfig, tmp_path: Path) -> None:
    swin = saved(small_swin(), tmp_path / "swin")
    config = changed(
        on_vit, backbone=BackboneSpec(str(swin)), recipe={"epochs": 1, "drop_path": 0.2, "warmup_share": 0.0}
    )
    config = changed(config, allocation={"servable": False, "budget": None})
    runs = compare(config, tmp_path / "runs", methods=["spt-lora", "lora-stored"], uniform_rank=2)
    assert [run.config.allocation.method for run in runs] == ["spt-lora", "lora-stored"]
    assert all(run.train().test_accuracy_last is not None for run in runs)


@pytest.mark.filterwarnings("error:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_commands_take_it_as_a_model(
    vit: Path, images: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["run", "--model", str(vit), "--data", str(images), "--rank", "2", "--epochs", "1", "--device", "cpu"]
    command += ["--sensitivity.num-batches", "1", "--output", str(out), "--budget", "900"]
    assert main(command) == 2
    assert "has no drop-path. Set `drop_path` to 0." in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--recipe.drop-path", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trainable_params"] == 900
    assert main(["evaluate", str(out)]) == 0
    assert main(["predict", str(out / "adapter"), str(files[0])]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(str(files[0]))
    assert main(["merge", str(out / "adapter"), "--output", str(tmp_path / "merged")]) == 0
    assert main(["sites", str(vit)]) == 0
    assert "Always trained" in capsys.readouterr().out


def test_advice_on_it_names_modules_that_peft_finds_in_it(
    vit: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model

    command = ["advise", str(vit), str(images), "--budget", "400", "--num-batches", "2", "--batch-size", "4"]
    assert main([*command, "--output", str(tmp_path / "advice")]) == 0
    assert "stay under resampling" in capsys.readouterr().out
    config = LoraConfig.from_pretrained(str(tmp_path / "advice"))
    model = AutoModelForImageClassification.from_pretrained(vit)
    trained = get_peft_model(model, config).get_nb_trainable_parameters()[0]
    assert trained - sum(each.numel() for each in model.classifier.parameters()) <= 400


def test_a_model_that_is_not_one_is_refused_before_anything_is_written(on_vit: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot take images of 64 × 64 pixels"):
        Run.open(tmp_path / "runs" / "a", changed(on_vit, backbone={"image_size": 64}))
    assert not any(tmp_path.iterdir())


def test_a_tuned_folder_may_be_loaded_with_its_base_in_memory(tuned: RunFolder, on_vit: RunConfig) -> None:
    backbone = load_backbone(on_vit.backbone, num_classes=3)
    model, manifest = load_tuned(tuned.training.adapter, backbone=backbone)
    assert manifest.weights_hash == backbone.weights_hash
    assert not model.training
