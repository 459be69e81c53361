from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tuned_models import tiny_vit

from sensitune.backbones import Backbone, BackboneSpec
from sensitune.backbones._hash import weights_hash
from sensitune.data import ImageData, ImageTransform
from sensitune.errors import AdapterFileError, ArgumentError
from sensitune.training import AdapterManifest, AdapterOrigin, load_tuned
from sensitune.training._weights import load_weights, save_weights

NAME = "sensitune.json"


def make_manifest(**changes: Any) -> AdapterManifest:
    counts = {"trainable_params": 100, "head_params": 9, "backbone_params": 1000}
    origin = AdapterOrigin("spt-lora", seed=3, **counts, data={"source": "wood"})
    manifest = AdapterManifest(
        BackboneSpec("vit_tiny_patch16_224", checkpoint="vit.npz", image_size=32),
        "0" * 64,
        ("red", "green"),
        ImageTransform(32, resize=40),
        origin,
    )
    return replace(manifest, **changes)


def test_a_manifest_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    make_manifest().save(tmp_path)
    assert AdapterManifest.load(tmp_path) == make_manifest()


def test_the_augmentation_of_the_training_is_not_part_of_it(tmp_path: Path) -> None:
    augmented = replace(make_manifest().transform, augment=True)
    make_manifest(transform=augmented).save(tmp_path)
    assert AdapterManifest.load(tmp_path) == make_manifest()


COUNTS: dict[str, Any] = {
    "method": "head",
    "seed": 0,
    "trainable_params": 0,
    "head_params": 9,
    "backbone_params": 1,
}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/home/someone/pictures/wood", "wood"),
        ("/home/someone/pictures/wood/", "wood"),
        ("../../home/alice/secret/photos", "photos"),
        ("./photos", "photos"),
        ("data/secret/x", "x"),
        ("file:///home/alice/x", "x"),
        ("~/x", "x"),
        ("~alice/secret/x", "x"),
        ("~alice", "unnamed data"),
        ("../..", "unnamed data"),
        ("/", "unnamed data"),
        ("C:\\Users\\x", "x"),
        ("C:\\", "unnamed data"),
        ("\\\\host\\alice\\x", "x"),
        ("/home/alice/wood, dark/photos", "photos"),
        ("/home/alice/wood, dark", "wood, dark"),
        ("/home/alice/~x", "x"),
        ("hf:../alice/x", "x"),
        ("hub: /home/alice/x", "x"),
        ("fgvc/secret/x", "x"),
        (["/a/train-*.tar", "b/c, d/test-*.tar"], ["train-*.tar", "test-*.tar"]),
    ],
)
def test_of_the_data_only_the_name_is_kept(source: object, name: object, data: ImageData) -> None:
    placed = replace(data, info={"source": source, "split": "as in the folder"})
    origin = AdapterOrigin.of(placed, **COUNTS)
    assert origin.data == {"source": name, "split": "as in the folder"}
    assert make_manifest(origin=origin).origin.data["source"] == name


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "elpv-dataset 0.4",
        "vtab1k/cifar",
        "fgvc/cub",
        "hf:wood",
        "hf:someone/wood",
        "hf:some.one/wood-2:small",
        "hub: someone/wood",
        "hub: someone/wood (small)",
    ],
)
def test_names_that_are_known_everywhere_stay(name: str, data: ImageData) -> None:
    origin = AdapterOrigin.of(replace(data, info={"source": name}), **COUNTS)
    assert make_manifest(origin=origin).origin.data == {"source": name}


def test_the_checkpoint_goes_by_its_name() -> None:
    spec = BackboneSpec("vit_tiny_patch16_224", checkpoint="/home/someone/vit.npz")
    with pytest.raises(
        ArgumentError, match=r"must be a file name\. Got '/home/someone/vit\.npz'\. Leave its folder out"
    ):
        make_manifest(backbone=spec)


@pytest.mark.parametrize(
    "path",
    [
        "/home/someone/wood",
        "C:\\wood",
        "\\\\host\\wood",
        "~/wood",
        "~someone/wood",
        "../wood",
        "..\\wood",
        "file:///home/someone/wood",
    ],
)
def test_a_path_of_the_makers_machine_is_refused(path: str) -> None:
    origin = replace(make_manifest().origin, data={"splits": [{"train": path}]})
    with pytest.raises(ArgumentError, match="must not hold a path of this machine"):
        make_manifest(origin=origin)


def test_files_of_the_data_are_named_as_they_lie_in_it() -> None:
    skipped = {"skipped_unreadable": ["wood/003.png", "~lock.png"]}
    assert make_manifest(origin=replace(make_manifest().origin, data=skipped)).origin.data == skipped


def test_a_tuned_weight_file_has_to_be_given_again(tmp_path: Path) -> None:
    make_manifest().save(tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(ArgumentError, match=r"was tuned on the weight file vit\.npz\. Give it as `checkpoint`\."):
        load_tuned(tmp_path)


def test_a_folder_without_a_manifest_is_no_adapter_folder(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"it has no sensitune\.json\. Give the `adapter` folder of a run"):
        AdapterManifest.load(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("weights_hash",), "abc", "`weights_hash` must be a SHA-256 hash, 64 hexadecimal digits. Got 'abc'."),
        (("origin", "seed"), -1, "`origin.seed` must be a whole number of at least 0"),
        (
            ("backbone", "image_size"),
            "32",
            "`backbone.image_size` must be a whole number of at least 1 and at most 4,096",
        ),
        (("transform", "image_sise"), 32, "`transform.image_sise` is not a setting."),
        (("class_names",), "red", "`class_names` must be a list. Got 'red'."),
        (("origin", "data"), {"source": "/home/someone"}, "must not hold a path of this machine"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, path: tuple[str, ...], value: object, message: str) -> None:
    make_manifest().save(tmp_path)
    values = json.loads((tmp_path / NAME).read_text())
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / NAME).write_text(json.dumps(values))
    with pytest.raises(AdapterFileError) as raised:
        AdapterManifest.load(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / NAME}: ")
    assert message in str(raised.value)


def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path) -> None:
    make_manifest().save(tmp_path)
    text = (tmp_path / NAME).read_text()
    (tmp_path / NAME).write_text(text[: len(text) // 2])
    with pytest.raises(AdapterFileError, match=r"sensitune\.json cannot be read: "):
        AdapterManifest.load(tmp_path)


def test_a_manifest_made_in_python_keeps_the_rules_of_the_file() -> None:
    with pytest.raises(
        ArgumentError, match=r"`weights_hash` must be a SHA-256 hash, 64 hexadecimal digits\. Got 'abc'"
    ):
        make_manifest(weights_hash="abc")
    with pytest.raises(ArgumentError, match=r"`backbone_params` must be a whole number of at least 1\. Got 0"):
        replace(make_manifest().origin, backbone_params=0)


# -- the files beside it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of PEFT's LoRA, so that nothing of it is checked by SPT's own configuration."""
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    config = LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["head"], init_lora_weights=False)
    save_weights(get_peft_model(base().model, config), folder, manifest=manifest_of(base()))
    return folder


def base() -> Backbone:
    model = tiny_vit()
    return Backbone(
        model, BackboneSpec("test_vit", pretrained=False), 16, *[(0.5,) * 3] * 2, "bicubic", weights_hash(model)
    )


def manifest_of(backbone: Backbone) -> AdapterManifest:
    names = tuple("abcde")
    return make_manifest(backbone=backbone.spec, weights_hash=backbone.weights_hash, class_names=names)


def rewritten(adapter: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy with other tensors and a manifest that knows them."""
    shutil.copytree(adapter, folder / "adapter")
    weights = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    AdapterManifest.load(folder / "adapter").save(folder / "adapter")
    return folder / "adapter"


def test_an_adapter_is_loaded_with_the_files_it_was_saved_with(adapter: Path) -> None:
    manifest = AdapterManifest.load(adapter)
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    assert manifest.files["adapter_model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert isinstance(load_tuned(adapter, backbone=base())[0], PeftModel)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_that_has_changed_is_named_and_can_be_taken_over(adapter: Path, name: str, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "a")
    content = (tmp_path / "a" / name).read_bytes()
    changed = (
        content.replace(b'"lora_alpha": 8', b'"lora_alpha": 9') if name.endswith("json") else content[:-1] + b"\x3c"
    )
    assert changed != content
    (tmp_path / "a" / name).write_bytes(changed)
    with pytest.raises(
        AdapterFileError, match=rf"{name} is damaged or was changed: its SHA-256 is \w+, not \w+ as sens"
    ):
        load_tuned(tmp_path / "a", backbone=base())
    AdapterManifest.load(tmp_path / "a").save(tmp_path / "a")
    assert isinstance(load_tuned(tmp_path / "a", backbone=base())[0], PeftModel)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_one_of_its_files_is_named_and_never_looked_up(
    adapter: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any, **__: Any) -> None:
        pytest.fail("The hub was asked.")

    monkeypatch.setattr("peft.utils.save_and_load.hf_hub_download", asked)
    monkeypatch.setattr("peft.utils.save_and_load.file_exists", asked)
    monkeypatch.setattr("peft.config.hf_hub_download", asked)
    shutil.copytree(adapter, tmp_path / "runs" / "adapter")
    (tmp_path / "runs" / "adapter" / name).unlink()
    for files in ({}, None):
        if files is not None:
            json_file = tmp_path / "runs" / "adapter" / NAME
            json_file.write_text(json.dumps({**json.loads(json_file.read_text()), "files": files, "sha256": None}))
        with pytest.raises(AdapterFileError, match=rf"^runs/adapter has no {name}\. Restore it, or train again"):
            load_tuned("runs/adapter", backbone=base())
        with pytest.raises(AdapterFileError, match=rf"^runs/adapter has no {name}"):
            load_weights(load_tuned(adapter, backbone=base())[0], "runs/adapter")


def test_a_manifest_that_has_changed_is_named_and_can_be_taken_over(tmp_path: Path) -> None:
    make_manifest().save(tmp_path)
    path = tmp_path / NAME
    path.write_text(path.read_text().replace('"green"', '"grean"'))
    with pytest.raises(
        AdapterFileError, match=r"sensitune.json is damaged or was changed: it does not go with its `sha25"
    ):
        AdapterManifest.load(tmp_path)
    values = json.loads(path.read_text())
    del values["sha256"]
    path.write_text(json.dumps(values))
    assert AdapterManifest.load(tmp_path).class_names == ("red", "grean")


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: tensors[LORA].fill_(torch.nan), r"`\S+lora_A.weight` holds a value that is not finite"),
        (
            lambda tensors: tensors["base_model.model.head.bias"].fill_(torch.inf),
            "`base_model.model.head.bias` holds a v",
        ),
        (lambda tensors: tensors.update({LORA: tensors[LORA].int()}), "must hold floating-point numbers, not int32"),
        (lambda tensors: tensors.pop(LORA), r"is incomplete: it lacks `\S+lora_A.weight`"),
        (lambda tensors: tensors.pop("base_model.model.head.bias"), r"does not belong to the files .*head.bias"),
        (lambda tensors: tensors.update({LORA: tensors[LORA][:1].clone()}), r"does not belong .*size mismatch"),
    ],
)
def test_weights_of_peft_s_own_methods_are_checked_too(
    adapter: Path, change: Callable[[dict[str, torch.Tensor]], None], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterFileError, match=rf"adapter_model.safetensors .*{sentence}"):
        load_tuned(rewritten(adapter, tmp_path, change), backbone=base())


LORA = "base_model.model.blocks.0.attn.qkv.lora_A.weight"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[]", r"`peft_type` must be one of PEFT's methods. Got None"),
        ('{"peft_type": "NONE"}', "`peft_type` must be one of PEFT's methods. Got 'NONE'"),
        ('{"peft_type": ["LORA"]}', r"`peft_type` must be one of PEFT's methods. Got \['LORA'\]"),
        ('{"peft_type": "LORA", "target_modules": {"x": 1}, "task_type": []}', "is damaged, or does not belong"),
        ('{"peft_type": "LORA", "r": ' + "9" * 99 + "}", "cannot be read: it holds a whole number of 99 digits"),
    ],
)
def test_a_configuration_that_peft_cannot_use_is_named(
    adapter: Path, content: str, sentence: str, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text(content)
    AdapterManifest.load(tmp_path / "a").save(tmp_path / "a")
    with pytest.raises(AdapterFileError, match=rf"adapter_config.json.* {sentence}"):
        load_tuned(tmp_path / "a", backbone=base())
