"""The model card of a trained adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from sensitune.allocation import random_allocation
from sensitune.backbones import BackboneSpec
from sensitune.data import ImageData, ImageTransform
from sensitune.sites import outline_model
from sensitune.training import AdapterManifest, AdapterOrigin, Recipe, TrainingResult, train
from sensitune.training._result import EpochMetrics
from sensitune.training._run_card import _TrainedAdapter
from sensitune.tuner import SptConfig

RESULT = TrainingResult(
    metrics=(EpochMetrics(1, 1.0, 1e-3, 2.0, 0.75, 0.9), EpochMetrics(2, 0.5, 1e-4, 2.0, 0.5, 1.0)),
    last_epoch=2,
    chosen_epoch=1,
    test_accuracy_last=0.6,
    test_accuracy_chosen=0.7,
    trained_params=109,
    num_train_images=1200,
    seconds=4.0,
    seed=3,
    device="cpu",
    precision="float32",
)
INFO = {"source": "wood", "split": "stratified", "split_sizes": {"train": 1200, "test": 300}, "licence": "CC BY 4.0"}


def make_manifest(**changes: Any) -> AdapterManifest:
    origin = AdapterOrigin("spt-lora", seed=3, trainable_params=100, head_params=9, backbone_params=4000, data=INFO)
    manifest = AdapterManifest(
        BackboneSpec("vit_b16_mae"), "0a" * 32, ("red", "green"), ImageTransform(image_size=224), origin
    )
    return replace(manifest, **changes)


def card(manifest: AdapterManifest | None, folder: Path, *, weights: Any = "last", **changes: Any) -> tuple[Any, str]:
    """Front matter and text of a card."""
    config = SptConfig(target_modules=["fc1"], r=2)
    recipe = changes.pop("recipe", Recipe(epochs=2))
    _TrainedAdapter(config, recipe, replace(RESULT, **changes), manifest).card(weights).write(folder)
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_of_a_run_says_what_is_known(tmp_path: Path) -> None:
    front, text = card(make_manifest(), tmp_path)
    assert front == {
        "library_name": "peft",
        "pipeline_tag": "image-classification",
        "base_model": "timm/vit_base_patch16_224.mae",
        "tags": ["sensitune", "spt"],
    }
    for line in (
        "# spt-lora on wood\n",
        "100 parameters were trained, 2.50% of the backbone's; 109 with the new head.",
        "- Name: `vit_b16_mae`\n- Weights: those of the name, SHA-256 `0a0a",
        "- Pretraining: ImageNet-1k, masked autoencoder\n- Licence of the weights: CC-BY-NC-4.0\n",
        "- Name: wood\n- Classes: 2 (red, green)\n- Images: train 1200, test 300\n- Splits: stratified\n",
        "- Licence: CC BY 4.0\n",
        "| last epoch (these) | 2 | 50.0% | 60.0% |\n",
        "| the epoch that the validation split chose | 1 | 75.0% | 70.0% |\n",
        "One run, seed 3: 2 epochs over 1,200 images",
    ):
        assert line in text
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert sections == [
        "## Base model",
        "## Data",
        "## Where the parameters went",
        "## Accuracy",
        "## How to use it",
    ]


def test_each_folder_says_which_weights_it_holds(tmp_path: Path) -> None:
    _, text = card(make_manifest(), tmp_path, weights="chosen")
    assert "| last epoch | 2 |" in text
    assert "| the epoch that the validation split chose (these) | 1 |" in text


def test_nothing_was_chosen_by_one_look_at_the_validation_split(tmp_path: Path) -> None:
    changes = {"chosen_epoch": 2, "test_accuracy_chosen": 0.6, "recipe": Recipe(epochs=2, validate="end")}
    _, text = card(make_manifest(), tmp_path, weights="chosen", **changes)
    assert "| last epoch (these) | 2 | 50.0% | 60.0% |" in text
    assert "that the validation split chose" not in text


def test_a_run_that_was_not_tested_claims_nothing(tmp_path: Path) -> None:
    _, text = card(make_manifest(), tmp_path, test_accuracy_last=None, test_accuracy_chosen=None)
    assert "| last epoch (these) | 2 | 50.0% | – |" in text


def test_names_from_outside_are_no_markup(tmp_path: Path) -> None:
    origin = replace(make_manifest().origin, data={"source": "[a](https://evil.example) <img src=x>"})
    names = ("<script>alert(1)</script>", "a|b", "![x](y)", "two\nlines", "`code`")
    _, text = card(make_manifest(class_names=names, origin=origin), tmp_path)
    assert r"\<script\>alert(1)\</script\>, a\|b, \!\[x\](y), two lines, \`code\`" in text
    assert r"# spt-lora on \[a\](https\://evil.example) \<img src=x\>" in text
    assert "<script" not in text.replace("\\<script", "")


def test_many_classes_are_counted(tmp_path: Path) -> None:
    _, text = card(make_manifest(class_names=tuple(f"c{index}" for index in range(120))), tmp_path)
    assert "- Classes: 120 (c0, c1, " in text
    assert "c49, and 70 more)" in text


def test_a_weight_file_goes_by_its_name_and_has_to_be_given(tmp_path: Path) -> None:
    spec = BackboneSpec("vit_b16_mocov3", checkpoint="my weights.pth")
    front, text = card(make_manifest(backbone=spec), tmp_path)
    assert "base_model" not in front
    assert "- Weights: the file `my weights.pth`, SHA-256 `0a0a" in text
    assert "load_tuned(\"path/to/this/folder\", checkpoint='my weights.pth')" in text
    assert "sensitune predict path/to/this/folder picture.png --checkpoint 'my weights.pth'\n" in text


@pytest.mark.parametrize(
    "spec",
    [
        BackboneSpec("dinov2_vit_s14_focus"),  # comes with a package
        BackboneSpec("vit_tiny_patch16_224", pretrained=False),
        BackboneSpec("hf-hub:someone/model"),
    ],
)
def test_a_base_that_timm_does_not_keep_on_the_hub_is_not_looked_for_there(spec: BackboneSpec, tmp_path: Path) -> None:
    assert "base_model" not in card(make_manifest(backbone=spec), tmp_path)[0]


def test_random_weights_go_by_their_seed(tmp_path: Path) -> None:
    spec = BackboneSpec("vit_tiny_patch16_224", pretrained=False, num_blocks=2)
    _, text = card(make_manifest(backbone=spec), tmp_path)
    assert "- Weights: random, drawn with seed 3, SHA-256" in text
    assert "- Of its blocks the first 2\n" in text


def test_without_a_manifest_the_card_says_what_the_configuration_and_the_run_know(tmp_path: Path) -> None:
    front, text = card(None, tmp_path)
    assert front == {"library_name": "peft", "tags": ["sensitune", "spt"]}
    assert "| last epoch (these) | 2 | 50.0% | 60.0% |" in text
    assert "## Data" not in text


def test_training_writes_the_cards_when_the_numbers_are_known(
    make_base: Callable[[], nn.Module], data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    base = make_base()
    allocation = random_allocation(outline_model(base), budget=400, rank=2)
    model = get_peft_model(base, SptConfig.from_allocation(allocation))
    counts = {"trainable_params": 400, "head_params": 51, "backbone_params": 8000}
    origin = AdapterOrigin.of(data, method="random", seed=0, **counts)
    manifest = make_manifest(class_names=data.class_names, transform=transform, origin=origin)
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=1e-2)
    result = train(model, data, recipe, tmp_path, transform=transform, manifest=manifest, device="cpu")
    assert result.test_accuracy_last is not None
    for folder, accuracy in (("adapter", result.test_accuracy_last), ("adapter_chosen", result.test_accuracy_chosen)):
        text = (tmp_path / folder / "README.md").read_text()
        (row,) = [line for line in text.splitlines() if "(these)" in line]
        assert row.endswith(f" {accuracy:.1%} |")
        assert "400 parameters were trained, 5.00% of the backbone's; 451 with the new head." in text
        assert "| all |" in text


def test_an_adapter_of_another_method_has_a_card_of_the_run_too(
    make_model: Callable[[], PeftModel], data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    train(make_model(), data, Recipe(epochs=1, batch_size=8), tmp_path, transform=transform, device="cpu")
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert "More Information Needed" not in text
    assert "# A LORA adapter\n" in text
    assert "| last epoch (these) | 1 |" in text


def test_a_head_alone_is_not_said_to_have_trained_with_drop_path(tmp_path: Path) -> None:
    _, text = card(make_manifest(), tmp_path, frozen_features=True)
    assert "weight decay 0.0001, the backbone as in evaluation, float32 on cpu." in text
    _, text = card(make_manifest(), tmp_path)
    assert "weight decay 0.0001, dropout 0.1, drop-path 0.1, float32 on cpu." in text


def test_one_of_pefts_own_methods_goes_by_its_type(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["fc1"])
    _TrainedAdapter(config, Recipe(epochs=2), RESULT, make_manifest()).card("last").write(tmp_path)
    assert "# LORA on wood\n" in (tmp_path / "README.md").read_text()
