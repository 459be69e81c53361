"""Image models of transformers as backbones: loaded whole, described by their own files, refused by name."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_image_models import PROCESSOR, SIZE, saved, small_swin, small_vit
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTModel

from sensitune.backbones import (
    BackboneSpec,
    check_backbone,
    load_backbone,
    local_weights,
    public_spec,
    rebuild_backbone,
)
from sensitune.errors import ArgumentError, CheckpointError, ModelError, SensituneError
from sensitune.sites import outline_model


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(small_vit(), tmp_path_factory.mktemp("models") / "my_vit")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 3 * SIZE**2).view(1, 3, SIZE, SIZE)).logits


def test_all_weights_but_the_heads_are_the_folders(vit: Path) -> None:
    backbone = load_backbone(str(vit), num_classes=3)
    original = small_vit().state_dict()
    found = backbone.model.state_dict()
    assert found.pop("classifier.weight").shape == (3, 16)
    assert not found.pop("classifier.bias").any()
    assert all(torch.equal(tensor, original[name]) for name, tensor in found.items())
    assert not backbone.model.training


def test_its_images_are_what_its_processor_says(vit: Path) -> None:
    backbone = load_backbone(str(vit), num_classes=3)
    assert (backbone.image_size, backbone.interpolation) == (32, "bilinear")
    assert backbone.mean == pytest.approx((0.5, 0.4, 0.3))
    assert backbone.std == pytest.approx((0.25, 0.5, 0.5))


@pytest.mark.parametrize(
    ("changes", "size", "mean"),
    [
        ({"size": 32}, 32, 0.5),
        ({"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, 32, 0.5),
        ({"do_normalize": False}, 32, 0.0),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, 32, 0.5),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "image_mean": [0] * 3, "image_std": [1] * 3}, 32, 0.5),
    ],
)
def test_a_processor_may_say_the_same_in_many_ways(
    vit: Path, tmp_path: Path, changes: dict[str, Any], size: int, mean: float
) -> None:
    folder = shutil.copytree(vit, tmp_path / "other")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | changes))
    backbone = load_backbone(str(folder), num_classes=3)
    assert backbone.image_size == size
    assert backbone.mean[0] == pytest.approx(mean)
    if not changes.get("do_normalize", True):
        assert backbone.std == (1.0, 1.0, 1.0)


def test_without_a_processor_the_defaults_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(small_vit(), tmp_path / "bare", None)
    with caplog.at_level(logging.WARNING):
        backbone = load_backbone(str(folder), num_classes=3)
    assert "has no preprocessor_config.json: the image size is config.json's, mean and std" in caplog.text
    assert (backbone.image_size, backbone.mean, backbone.interpolation) == (32, (0.485, 0.456, 0.406), "bicubic")


def test_a_model_without_a_head_gets_one_and_what_has_no_place_is_listed(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    folder = saved(ViTModel(ViTConfig(image_size=SIZE, patch_size=8, **sizes)), tmp_path / "trunk")
    backbone = load_backbone(str(folder), num_classes=3)
    assert logits(backbone.model).shape == (1, 3)
    # Older releases of transformers put the trunk's name before it.
    assert [name.removeprefix("vit.") for name in backbone.dropped] == ["pooler.dense.bias", "pooler.dense.weight"]


def test_the_head_depends_on_the_seed_alone_and_the_hash_not_on_the_head(vit: Path) -> None:
    first, again, other = (load_backbone(str(vit), num_classes=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(logits(first.model), logits(again.model))
    assert not torch.equal(logits(first.model), logits(other.model))
    assert first.weights_hash == other.weights_hash
    assert first.weights_hash != load_backbone(BackboneSpec(str(vit), pretrained=False), num_classes=3).weights_hash


def test_the_folder_may_have_moved(vit: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(vit, tmp_path / "elsewhere")
    spec = BackboneSpec("./my_vit", checkpoint=str(moved))
    assert load_backbone(spec, num_classes=3).weights_hash == load_backbone(str(vit), num_classes=3).weights_hash


def test_what_is_made_public_names_no_place(vit: Path) -> None:
    spec = BackboneSpec(str(vit))
    assert local_weights(spec) == str(vit)
    assert public_spec(spec) == BackboneSpec("./my_vit", checkpoint="my_vit")
    assert public_spec(BackboneSpec("google/some-vit")) == BackboneSpec("google/some-vit")
    assert load_backbone(spec, num_classes=3).model.name_or_path == "./my_vit"


def test_a_name_of_timms_means_timms_model(vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(vit, tmp_path / "test_vit")
    monkeypatch.chdir(tmp_path)
    spec = BackboneSpec("test_vit", pretrained=False)
    assert not hasattr(load_backbone(spec, num_classes=3).model, "config")
    assert hasattr(load_backbone("./test_vit", num_classes=3).model, "config")


def test_drop_path_is_off_unless_asked_for(tmp_path: Path) -> None:
    backbone = load_backbone(str(saved(small_swin(), tmp_path / "swin")), num_classes=3)
    check_backbone(backbone, num_classes=3, drop_path=0.5)
    image = torch.ones(32, 3, SIZE, SIZE)
    still, shaken = backbone.model.train(), rebuild_backbone(backbone, num_classes=3, drop_path=0.5).model.train()
    assert torch.equal(still(image).logits, still(image).logits)
    assert not torch.equal(shaken(image).logits, shaken(image).logits)
    assert torch.equal(shaken.eval()(image).logits, still.eval()(image).logits)


def test_a_repository_is_fetched_without_what_could_run_code(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(vit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    backbone = load_backbone("google/some-vit", num_classes=3)
    assert backbone.spec.name == backbone.model.name_or_path == "google/some-vit"
    assert not any(pattern.endswith((".bin", ".py")) for pattern in asked["google/some-vit"])


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"google/some-vit could not be fetched: .*\(ConnectionError\)"):
        load_backbone("google/some-vit", num_classes=3)


def test_plain_pickles_are_read_and_those_that_run_code_are_not(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "pickled")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    whole = load_backbone(str(vit), num_classes=3)
    assert load_backbone(str(folder), num_classes=3).weights_hash == whole.weights_hash

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "run",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"classifier.weight": Hostile()}))
    with pytest.raises(CheckpointError, match="must be safetensors files, or pickles of plain tensors"):
        load_backbone(str(folder), num_classes=3)
    assert not (tmp_path / "run").exists()


def without(folder: Path, *names: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: each for name, each in tensors.items() if name not in names},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def spoilt(folder: Path, name: str, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: change(tensors[name])}, folder / "model.safetensors", {"format": "pt"})


def configured(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


WEIGHT = "vit.layernorm.weight"


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda folder: without(folder, WEIGHT), CheckpointError, r"do not fit its config\.json: 1 missing \(vit\.lay"),
        (lambda folder: spoilt(folder, WEIGHT, lambda w: w[:8].clone()), CheckpointError, "1 of another shape"),
        (lambda folder: spoilt(folder, WEIGHT, lambda w: w * torch.nan), CheckpointError, "values that are not finite"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), CheckpointError, "transformers cannot load"),
        (lambda folder: (folder / "model.safetensors").unlink(), CheckpointError, "transformers cannot load"),
        (lambda folder: (folder / "config.json").write_text("{"), ModelError, "cannot read config.json"),
        (lambda folder: (folder / "config.json").unlink(), CheckpointError, "no folder in transformers' format"),
        (lambda folder: configured(folder, model_type="martian"), ModelError, "cannot read config.json"),
        (lambda folder: configured(folder, quantization_config={"quant_method": "x"}), ModelError, "in few bits"),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text("["),
            ModelError,
            "preprocessor_config.json of .* cannot be read",
        ),
        (
            lambda folder: (folder / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 16}}'),
            ModelError,
            "images of 32 × 16 pixels are not square",
        ),
    ],
)
def test_a_damaged_folder_is_one_sentence(
    vit: Path, tmp_path: Path, spoil: Any, error: type[SensituneError], message: str
) -> None:
    folder = shutil.copytree(vit, tmp_path / "damaged")
    spoil(folder)
    with pytest.raises(error, match=message) as raised:
        load_backbone(str(folder), num_classes=3)
    assert "\n" not in str(raised.value)


def test_a_language_model_is_no_backbone_and_is_told_where_to_go(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    folder = saved(BertForSequenceClassification(BertConfig(vocab_size=9, **sizes)), tmp_path / "bert", None)
    with pytest.raises(ModelError, match=r"of the type bert, of which .* no image classifier\. `sensitune advise`"):
        load_backbone(str(folder), num_classes=3)


def test_what_only_timms_models_have_is_refused(vit: Path) -> None:
    with pytest.raises(ArgumentError, match="`num_blocks` cuts timm's models"):
        load_backbone(BackboneSpec(str(vit), num_blocks=1), num_classes=3)
    with pytest.raises(ModelError, match=r"has no drop-path\. Set `drop_path` to 0\."):
        load_backbone(str(vit), num_classes=3, drop_path=0.1)


def test_images_of_another_size_are_refused_before_anything_is_computed(vit: Path) -> None:
    backbone = load_backbone(BackboneSpec(str(vit), image_size=64), num_classes=3)
    with pytest.raises(ModelError, match=r"cannot take images of 64 × 64 pixels \(.*\)\. Set another `image_size`"):
        check_backbone(backbone, num_classes=3)


def test_it_is_outlined_like_any_other(vit: Path) -> None:
    outline = outline_model(load_backbone(str(vit), num_classes=3).model)
    assert outline.head == ("classifier",)
    assert {"q", "k", "v", "fc1", "fc2"} <= {site.operation for site in outline.sites}
