"""A merged checkpoint and its way back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sensitune.backbones import Backbone, BackboneSpec, load_backbone, save_checkpoint
from sensitune.backbones._saved import saved_metadata
from sensitune.errors import ArgumentError, CheckpointError, ModelError

SPEC = BackboneSpec("test_vit", pretrained=False, image_size=96, num_blocks=2)
PREPROCESSING = {"image_size": 96, "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0), "interpolation": "bilinear"}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Backbone, Path]:
    backbone = load_backbone(SPEC, num_classes=3)
    path = tmp_path / "merged.safetensors"
    save_checkpoint(
        backbone.model,
        path,
        spec=SPEC,
        class_names=["a", "b", "c"],
        preprocessing=PREPROCESSING,
        metadata={"budget": 1000},
    )
    return backbone, path


def reload(path: Path, **options: object) -> Backbone:
    return load_backbone(BackboneSpec("test_vit", checkpoint=str(path)), **options)


def test_a_merged_checkpoint_comes_back_whole(saved: tuple[Backbone, Path]) -> None:
    backbone, path = saved
    again = reload(path, num_classes=3, keep_head=True)
    images = torch.randn(2, 3, 96, 96)
    assert torch.equal(again.model(images), backbone.model(images))
    assert again.weights_hash == backbone.weights_hash
    assert again.class_names == ("a", "b", "c")


def test_it_brings_its_image_size_blocks_and_normalisation(saved: tuple[Backbone, Path]) -> None:
    again = reload(saved[1], num_classes=3)
    assert (again.image_size, again.spec.image_size, again.spec.num_blocks) == (96, 96, 2)
    assert (again.mean, again.std, again.interpolation) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "bilinear")


def test_it_can_be_cut_and_resized_further(saved: tuple[Backbone, Path]) -> None:
    spec = BackboneSpec("test_vit", checkpoint=str(saved[1]), image_size=64, num_blocks=1)
    again = load_backbone(spec, num_classes=3)
    assert again.model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert again.spec == spec


def test_its_head_is_left_behind_unless_asked_for(saved: tuple[Backbone, Path]) -> None:
    again = reload(saved[1], num_classes=7)
    assert set(again.dropped) == {"head.weight", "head.bias"}
    assert again.model.get_submodule("head").weight.shape == (7, 64)


def test_a_head_of_another_size_cannot_be_kept(saved: tuple[Backbone, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"2 of another shape \(head.weight \[3, 64\] instead of \[7, 64\]"):
        reload(saved[1], num_classes=7, keep_head=True)


def test_what_was_written_beside_the_weights_can_be_read(saved: tuple[Backbone, Path]) -> None:
    about = saved_metadata(saved[1])
    assert about is not None
    assert about.spec == SPEC
    assert about.class_names == ("a", "b", "c")
    assert about.metadata == {"budget": 1000}
    assert about.weights_hash == saved[0].weights_hash
    assert set(about.versions) == {"sensitune", "timm", "torch"}


def test_another_architecture_is_refused_by_name(saved: tuple[Backbone, Path]) -> None:
    with pytest.raises(CheckpointError, match="was saved from test_vit, not from test_vit2"):
        load_backbone(BackboneSpec("test_vit2", checkpoint=str(saved[1])), num_classes=3)


def test_a_file_of_another_origin_says_nothing_about_itself(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    assert saved_metadata(tmp_path / "other.safetensors") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"is truncated, damaged or not"),
        ("[]", r"must be a group of settings\. Got \[\]"),
        ('{"spec": {"name": "a"}}', r"m\.safetensors: The setting `class_names` is missing"),
        ("spec", r"`spec\.image_size` must be a whole number of at least 1 and at most 4,096, or null\. Got '96'"),
    ],
)
def test_damaged_settings_are_refused_by_name(
    text: str, message: str, saved: tuple[Backbone, Path], tmp_path: Path
) -> None:
    if text == "spec":
        with safe_open(saved[1], framework="pt") as file:
            values = json.loads(file.metadata()["sensitune_checkpoint"])
        values["spec"]["image_size"] = "96"
        text = json.dumps(values)
    save_file({"a": torch.ones(1)}, tmp_path / "m.safetensors", metadata={"sensitune_checkpoint": text})
    with pytest.raises(CheckpointError, match=message):
        load_backbone(BackboneSpec("test_vit", checkpoint=str(tmp_path / "m.safetensors")), num_classes=3)


@pytest.mark.parametrize("what", ["head.bias", "header"])
def test_what_is_not_as_it_was_written_is_noticed(what: str, saved: tuple[Backbone, Path], tmp_path: Path) -> None:
    with safe_open(saved[1], framework="pt") as file:
        header = file.metadata()
    tensors = load_file(saved[1])
    if what == "head.bias":
        tensors[what][0] += 1
    else:
        header["sensitune_checkpoint"] += " "
    save_file(tensors, tmp_path / "m.safetensors", metadata=header)
    said = "the tensor `head.bias`" if what == "head.bias" else "its header"
    with pytest.raises(CheckpointError, match=rf"m\.safetensors is damaged: {said} is not what was written"):
        load_backbone(BackboneSpec("test_vit", checkpoint=str(tmp_path / "m.safetensors")), num_classes=3)


def test_a_preprocessing_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    model = load_backbone(SPEC, num_classes=3).model
    with pytest.raises(ArgumentError, match=r"`preprocessing\.mena` is not a setting\. The closest one is `preproc"):
        save_checkpoint(model, tmp_path / "m.safetensors", spec=SPEC, preprocessing={"mena": (0.5, 0.5, 0.5)})


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    model = load_backbone(SPEC, num_classes=3).model
    with pytest.raises(ArgumentError, match=r"must end in .safetensors. Got 'merged.pth'."):
        save_checkpoint(model, "merged.pth", spec=SPEC)


def test_a_model_that_is_not_merged_is_refused(tmp_path: Path) -> None:
    model = load_backbone(SPEC, num_classes=3).model
    tuned = get_peft_model(model, LoraConfig(target_modules=["qkv"]))
    with pytest.raises(ModelError, match=r"still has tuner layers. Call `merge_and_unload"):
        save_checkpoint(tuned, tmp_path / "m.safetensors", spec=SPEC)
    save_checkpoint(tuned.merge_and_unload(), tmp_path / "m.safetensors", spec=SPEC)


def test_a_full_disk_leaves_nothing_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("sensitune.backbones._saved.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(load_backbone(SPEC, num_classes=3).model, tmp_path / "m.safetensors", spec=SPEC)
    assert list(tmp_path.iterdir()) == []
