"""The paper's backbones by short name: the table, and each original file's every tensor in its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from sensitune.allocation import allocate
from sensitune.backbones import PUBLISHED_BACKBONES, Backbone, BackboneSpec, load_backbone
from sensitune.errors import CheckpointError, ModelError
from sensitune.sensitivity import estimate_sensitivity
from sensitune_command import main

Tensors = dict[str, torch.Tensor]
Write = Callable[[Tensors, Path], None]

_VIT = {"depth": 2, "embed_dim": 16, "num_heads": 2}
# Each with its publisher's layout and what makes it small; the model's code, patches and image size stay its own.
SMALL = {
    "vit_b16_in21k": ("google", _VIT),
    "vit_l16_in21k": ("google", _VIT),
    "vit_h14_in21k": ("google", _VIT),
    "vit_b16_mae": ("mae", _VIT),
    "vit_b16_mocov3": ("moco", _VIT),
    "swin_b_in22k": ("microsoft", {"depths": (2, 1, 2, 1), "embed_dim": 8, "num_heads": (1, 2, 2, 4)}),
    "convnext_b_in22k": ("facebook", {"depths": (1, 2, 1, 1), "dims": (4, 8, 12, 16)}),
}
TRANSFORMERS = [name for name in SMALL if name.startswith("vit_")]


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm builds the models of the table at a depth and width that a test can afford."""
    create = timm.create_model
    options = {PUBLISHED_BACKBONES[name].timm_name: small for name, (_, small) in SMALL.items()}

    def create_small(name: str, **given: object) -> torch.nn.Module:
        return create(name, **{**given, **options[name]})

    monkeypatch.setattr(timm, "create_model", create_small)


def state_of(name: str, num_classes: int = 1000) -> Tensors:
    """A model's parameters, none of them at a value that a fresh model would have, no two tensors alike."""
    model = timm.create_model(PUBLISHED_BACKBONES[name].timm_name, num_classes=num_classes)
    return {key: torch.randn(each.shape) for key, each in model.named_parameters()}


def write(name: str, state: Tensors, folder: Path, writers: dict[str, Write]) -> Path:
    path = folder / PUBLISHED_BACKBONES[name].file
    writers[SMALL[name][0]](state, path)
    return path


def load(name: str, path: Path, **settings: int) -> Backbone:
    return load_backbone(BackboneSpec(name, checkpoint=str(path), **settings), num_classes=5)


def is_head(name: str) -> bool:
    return name.startswith("head.") and not name.startswith("head.norm.")


@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize("name", SMALL)
def test_every_tensor_of_the_original_file_is_in_its_place_and_the_old_head_is_dropped(
    name: str, tmp_path: Path, write_published: dict[str, Write]
) -> None:
    state = state_of(name)
    backbone = load(name, write(name, state, tmp_path, write_published))
    filled = dict(backbone.model.named_parameters())
    assert set(filled) == set(state)
    for key, tensor in state.items():
        if not is_head(key):
            torch.testing.assert_close(filled[key].detach(), tensor, rtol=0, atol=0, msg=key)
    heads = {"mae": set(), "google": {"head/kernel", "head/bias", "pre_logits/kernel", "pre_logits/bias"}}
    timm_head = {key for key in state if is_head(key)}
    assert set(backbone.dropped) == heads.get(SMALL[name][0], timm_head)
    assert backbone.model.get_classifier().out_features == 5
    published = PUBLISHED_BACKBONES[name]
    assert (backbone.mean, backbone.std, backbone.image_size) == (published.mean, published.std, 224)


@pytest.mark.usefixtures("small_models")
def test_the_encoder_is_taken_from_a_whole_contrastive_pretraining(tmp_path: Path) -> None:
    state = state_of("vit_b16_mocov3")
    body = {key: tensor for key, tensor in state.items() if not is_head(key)}
    heads = {"head.0.weight": torch.randn(8, 16), "head.1.weight": torch.randn(8)}
    whole = {f"module.base_encoder.{key}": tensor for key, tensor in {**body, **heads}.items()}
    whole |= {f"module.momentum_encoder.{key}": torch.zeros_like(tensor) for key, tensor in body.items()}
    path = tmp_path / "vit-b-300ep.pth.tar"
    torch.save({"epoch": 300, "state_dict": {**whole, "module.predictor.0.weight": torch.zeros(8, 8)}}, path)
    backbone = load("vit_b16_mocov3", path)
    filled = backbone.model.state_dict()
    assert all(torch.equal(filled[key], tensor) for key, tensor in body.items())
    assert set(backbone.dropped) == set(heads)


@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_another_image_size_resizes_the_position_embedding_and_nothing_else(
    name: str, tmp_path: Path, write_published: dict[str, Write]
) -> None:
    state = state_of(name)
    patch = 14 if "h14" in name else 16
    backbone = load(name, write(name, state, tmp_path, write_published), image_size=patch * 5)
    filled = backbone.model.state_dict()
    token, grid = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    side = round(grid.shape[1] ** 0.5)
    square = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(5, 5), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(filled["pos_embed"], torch.cat([token, resized], dim=1))
    same = [key for key in state if key != "pos_embed" and not is_head(key)]
    assert all(torch.equal(filled[key], state[key]) for key in same)


@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize("name", ["swin_b_in22k", "convnext_b_in22k"])
def test_models_without_position_embedding_take_another_image_size_as_they_are(
    name: str, tmp_path: Path, write_published: dict[str, Write]
) -> None:
    state = state_of(name)
    backbone = load(name, write(name, state, tmp_path, write_published), image_size=448)
    filled = backbone.model.state_dict()
    assert all(torch.equal(filled[key], state[key]) for key in state if not is_head(key))
    assert backbone.image_size == 448


@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize("name", SMALL)
def test_a_backbone_from_its_original_file_takes_a_training_step(
    name: str, tmp_path: Path, write_published: dict[str, Write]
) -> None:
    from peft import get_peft_model

    from sensitune.tuner import SptConfig

    state = {key: tensor * 0.05 for key, tensor in state_of(name).items()}
    backbone = load(name, write(name, state, tmp_path, write_published))
    batch = torch.randn(2, 3, 224, 224), torch.tensor([0, 1])
    allocation = allocate(estimate_sensitivity(backbone.model, [batch]), budget=600, structured="lora", rank=2)
    tuned = get_peft_model(backbone.model, SptConfig.from_allocation(allocation))
    optimiser = torch.optim.SGD([each for each in tuned.parameters() if each.requires_grad], lr=1e-3)
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(tuned.eval()(batch[0]), batch[1])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize("name", SMALL)
def test_a_file_of_another_depth_is_refused(name: str, tmp_path: Path, write_published: dict[str, Write]) -> None:
    state = state_of(name)
    if name in TRANSFORMERS:
        extra = {re.sub(r"blocks\.1\.", "blocks.2.", key): each for key, each in state.items() if "blocks.1." in key}
    else:
        extra = {re.sub(r"\.blocks\.0\.", ".blocks.7.", key): each for key, each in state.items() if ".3.blocks" in key}
    deeper = write(name, state | extra, tmp_path, write_published)
    with pytest.raises(
        CheckpointError,
        match=r"that the model does not have \(|it has 3 blocks, the model 2|tensors cannot be converted \(.*7",
    ):
        load(name, deeper)
    pattern = r"blocks\.1\." if name in TRANSFORMERS else r"\.3\.blocks\.0\."
    shallower = {key: each for key, each in state.items() if not re.search(pattern, key)}
    with pytest.raises(CheckpointError, match=r"\d+ missing \(|it has 1 blocks, the model 2"):
        load(name, write(name, shallower, tmp_path, write_published))


@pytest.mark.parametrize("name", SMALL)
def test_the_table_agrees_with_timm(name: str) -> None:
    published = PUBLISHED_BACKBONES[name]
    config = timm.models.get_pretrained_cfg(published.timm_name)
    assert published.name == name
    assert (published.mean, published.std) == (config.mean, config.std)
    assert published.licence.lower() == config.license
    if published.on_hub and config.url:
        assert published.address == config.url


def test_every_name_has_a_test_of_its_layout() -> None:
    assert set(SMALL) == set(PUBLISHED_BACKBONES)


def test_moco_v3_is_never_filled_from_the_hub_with_other_weights() -> None:
    with pytest.raises(
        CheckpointError, match=r"no weights for vit_b16_mocov3. Download https://\S+\.pth\.tar and give"
    ):
        load_backbone("vit_b16_mocov3", num_classes=3)


def test_the_hub_is_asked_for_the_right_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    create = timm.create_model

    def offline(name: str, *, pretrained: bool, **options: object) -> torch.nn.Module:
        asked.append((name, pretrained))
        return create(name, pretrained=False, depth=1, embed_dim=8, num_heads=1, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    load_backbone("vit_b16_in21k", num_classes=3)
    assert asked == [("vit_base_patch16_224.orig_in21k", True)]


def test_a_misspelt_short_name_gets_the_right_one() -> None:
    with pytest.raises(ModelError, match=r"'vit_b16_ma' is not a timm model. Close names: vit_b16_mae"):
        load_backbone("vit_b16_ma", num_classes=3)


def test_the_command_lists_names_licences_and_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones"]) == 0
    shown = capsys.readouterr().out
    for each in PUBLISHED_BACKBONES.values():
        assert each.name in shown
        assert each.licence in shown
        assert each.address in shown


@pytest.mark.parametrize("file", ["m.pth", "m.npz", "m.safetensors", "m.pth.tar", "m.bin"])
def test_what_a_failed_download_leaves_is_named(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 346\n")
    with pytest.raises(CheckpointError, match=r"is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`"):
        load("test_vit", tmp_path / file)
    (tmp_path / file).write_text("\n<!DOCTYPE html>\n<html><body>Not found</body></html>")
    with pytest.raises(CheckpointError, match=r"is an HTML page that was saved in place of the weights"):
        load("test_vit", tmp_path / file)
