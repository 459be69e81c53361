"""The gradients that a pass keeps on request."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional

from sensitune.errors import AdapterFileError, AllocationMismatchError, ArgumentError
from sensitune.sensitivity import Sensitivity, estimate_sensitivity

Batches = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture
def model() -> VisionTransformer:
    vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, mlp_ratio=2, num_classes=3)
    return vit.double().eval()


@pytest.fixture
def batches() -> Batches:
    return [(torch.randn(size, 3, 8, 8, dtype=torch.float64), torch.randint(3, (size,))) for size in (4, 5, 3)]


@pytest.fixture
def sensitivity(model: VisionTransformer, batches: Batches) -> Sensitivity:
    return estimate_sensitivity(model, batches, keep_gradients=True)


def kept(sensitivity: Sensitivity) -> dict[str, torch.Tensor]:
    assert sensitivity.gradients is not None
    return dict(sensitivity.gradients)


@pytest.mark.parametrize("criterion", ["squared_gradient", "absolute_gradient_sum"])
@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 2}, {"score_dtype": torch.bfloat16}])
def test_they_are_the_sum_of_what_a_plain_loop_finds(
    model: VisionTransformer, batches: Batches, criterion: str, options: dict[str, Any]
) -> None:
    found = estimate_sensitivity(model, batches, criterion=criterion, keep_gradients=True, **options)
    for x, y in batches:
        functional.cross_entropy(model(x), y).backward()  # adds up in `grad`
    assert kept(found).keys() == found.scores.keys()
    for name, gradient in kept(found).items():
        expected = model.get_parameter(name).grad
        assert expected is not None
        assert (gradient.dtype, gradient.device.type) == (torch.float32, "cpu")
        torch.testing.assert_close(gradient, expected.float(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"criterion": "absolute_gradient_sum"}, {"score_dtype": torch.bfloat16}])
def test_keeping_them_does_not_change_the_scores(
    model: VisionTransformer, batches: Batches, options: dict[str, Any]
) -> None:
    without = estimate_sensitivity(model, batches, **options)
    found = estimate_sensitivity(model, batches, keep_gradients=True, **options)
    assert all(torch.equal(found.scores[name], score) for name, score in without.scores.items())


def test_the_gradient_of_a_slice_is_a_view_of_its_rows(sensitivity: Sensitivity) -> None:
    site = next(site for site in sensitivity.sites if site.id == "blocks.0.attn.qkv.weight[v]")
    gradient = sensitivity.gradient_of(site)
    assert torch.equal(gradient, kept(sensitivity)["blocks.0.attn.qkv.weight"][16:24])
    assert gradient.data_ptr() == kept(sensitivity)["blocks.0.attn.qkv.weight"][16:].data_ptr()


def test_without_being_asked_for_they_are_not_there(model: VisionTransformer, batches: Batches) -> None:
    sensitivity = estimate_sensitivity(model, batches)
    assert sensitivity.gradients is None
    with pytest.raises(
        ArgumentError,
        match=r"holds no gradients, so none of `blocks.0.norm1.weight`. .* `estimate_sensitivity\(..., ke",
    ):
        sensitivity.gradient_of(sensitivity.sites[0])


def test_criteria_without_data_cannot_keep_them(model: VisionTransformer, batches: Batches) -> None:
    sentence = (
        "`keep_gradients` needs a criterion that reads the data; 'random' looks at the weights alone. Choose one of"
    )
    with pytest.raises(ArgumentError, match=sentence):
        estimate_sensitivity(model, batches, criterion="random", keep_gradients=True)


@pytest.mark.parametrize("lazy", [False, True])
def test_they_survive_the_disk(sensitivity: Sensitivity, tmp_path: Path, lazy: bool) -> None:
    sensitivity.save(tmp_path / "first.safetensors")
    Sensitivity.load(tmp_path / "first.safetensors", lazy=lazy).save(tmp_path / "second.safetensors")
    for name in ("first", "second"):
        loaded = Sensitivity.load(tmp_path / f"{name}.safetensors", lazy=lazy)
        assert kept(loaded).keys() == set(loaded.scores) == set(sensitivity.scores)
        for site in sensitivity.sites:
            assert torch.equal(loaded.gradient_of(site), sensitivity.gradient_of(site))
            assert torch.equal(loaded.score_of(site), sensitivity.score_of(site))


@pytest.mark.parametrize("lazy", [False, True])
def test_a_file_without_them_loads_without(sensitivity: Sensitivity, tmp_path: Path, lazy: bool) -> None:
    dataclasses.replace(sensitivity, gradients=None).save(tmp_path / "plain.safetensors")
    with safe_open(tmp_path / "plain.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["sensitune"])
        assert set(file.keys()) == set(sensitivity.scores)
    assert header["gradients"] == []
    assert Sensitivity.load(tmp_path / "plain.safetensors", lazy=lazy).gradients is None


def test_a_lazy_gradient_whose_file_is_gone_says_so(sensitivity: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.safetensors"
    sensitivity.save(path)
    lazy = Sensitivity.load(path, lazy=True)
    path.unlink()
    with pytest.raises(AdapterFileError, match=r"The tensor `gradient:blocks.0.norm1.weight` can no longer be read"):
        lazy.gradient_of(lazy.sites[0])


def test_a_file_that_lost_one_is_refused(sensitivity: Sensitivity, tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.safetensors"
    sensitivity.save(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    del tensors["gradient:blocks.0.norm1.weight"]
    save_file(tensors, path, metadata=header)
    with pytest.raises(AdapterFileError, match="is incomplete: it lacks the tensor `gradient:blocks.0.norm1.weight`"):
        Sensitivity.load(path)


def test_they_must_fit_the_sites(sensitivity: Sensitivity) -> None:
    with pytest.raises(AllocationMismatchError, match=r"The gradients lack `blocks.0.norm1.weight`, which site"):
        dataclasses.replace(sensitivity, gradients={})
    wrong = kept(sensitivity) | {"blocks.0.norm1.weight": torch.zeros(7)}
    with pytest.raises(
        AllocationMismatchError, match=r"The gradient of `blocks.0.norm1.weight` has shape \(7,\); site"
    ):
        dataclasses.replace(sensitivity, gradients=wrong)
