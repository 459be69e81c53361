from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sensitune.backbones import BackboneSpec
from sensitune.data import ImageData, ImageTransform
from sensitune.errors import AdapterFileError, ArgumentError
from sensitune.training import AdapterManifest, AdapterOrigin, load_tuned

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
        (("backbone", "image_size"), "32", "`backbone.image_size` must be a whole number of at least 1 or null."),
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
