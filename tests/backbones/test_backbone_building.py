"""From a spec to a model: sizes, blocks, the head, random state, names."""

from __future__ import annotations

import random

import numpy as np
import pytest
import timm
import torch
from timm.layers.drop import DropPath

from sensitune._schema import read, to_plain
from sensitune.backbones import Backbone, BackboneSpec, load_backbone
from sensitune.backbones._hash import weights_hash
from sensitune.errors import ArgumentError, CheckpointError, ConfigError, ModelError
from sensitune.sites import outline_model

RANDOM = BackboneSpec("test_vit", pretrained=False)


def random_backbone(num_classes: int = 5, **settings: object) -> Backbone:
    return load_backbone(BackboneSpec("test_vit", pretrained=False, **settings), num_classes=num_classes)


def test_a_spec_survives_its_trip_through_a_dictionary() -> None:
    spec = BackboneSpec("test_vit", checkpoint="a.pth", image_size=96, num_blocks=2, head=("norm", "head"))
    assert read(BackboneSpec, to_plain(spec)) == spec


def test_an_unknown_setting_of_a_spec_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`backbone\.img_size` is not a setting\. .* is `backbone\.image_size`"):
        read(BackboneSpec, {"name": "test_vit", "img_size": 96}, where="backbone")


@pytest.mark.parametrize(
    ("field", "rule"),
    [("image_size", "at least 1 and at most 4,096, or None"), ("num_blocks", "at least 1 or None")],
)
def test_a_size_below_one_is_refused(field: str, rule: str) -> None:
    with pytest.raises(ArgumentError, match=rf"`{field}` must be a whole number of {rule}\. Got 0\."):
        BackboneSpec("test_vit", **{field: 0})


def test_random_weights_and_a_checkpoint_contradict_each_other() -> None:
    with pytest.raises(ArgumentError, match=r"random weights, `checkpoint` for those of 'a.pth'. Give one."):
        BackboneSpec("test_vit", checkpoint="a.pth", pretrained=False)


def test_the_model_says_what_it_expects_of_its_images() -> None:
    backbone = random_backbone()
    assert (backbone.image_size, backbone.mean, backbone.std) == (160, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert backbone.interpolation == "bicubic"
    assert not backbone.model.training


def test_the_image_size_can_be_chosen() -> None:
    backbone = random_backbone(image_size=96)
    assert backbone.image_size == 96
    assert backbone.model(torch.zeros(1, 3, 96, 96)).shape == (1, 5)


def test_a_convolutional_model_takes_any_image_size() -> None:
    backbone = load_backbone(BackboneSpec("test_convnext", pretrained=False, image_size=64), num_classes=3)
    assert backbone.image_size == 64
    assert backbone.model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_an_image_size_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ModelError, match=r"`image_size` must be a multiple of 16, .* of test_vit. Got 100."):
        random_backbone(image_size=100)


def test_only_the_first_blocks_are_kept() -> None:
    whole, cut = random_backbone().model.state_dict(), random_backbone(num_blocks=2).model.state_dict()
    assert {name.split(".")[1] for name in cut if name.startswith("blocks.")} == {"0", "1"}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in cut.items())


def test_drop_path_grows_to_the_same_rate_over_fewer_blocks() -> None:
    spec = BackboneSpec("test_vit", pretrained=False, num_blocks=3)
    model = load_backbone(spec, num_classes=5, drop_path=0.3).model
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.15, 0.15, 0.3, 0.3])


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet"])
def test_a_model_without_equal_blocks_cannot_be_cut(name: str) -> None:
    with pytest.raises(ModelError, match=f"one list of equal blocks, which {name} does not have"):
        load_backbone(BackboneSpec(name, pretrained=False, num_blocks=1), num_classes=3)


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(ModelError, match=r"`num_blocks` must be at most 6, the blocks of test_vit. Got 7."):
        random_backbone(num_blocks=7)


def test_the_head_is_small_random_and_without_bias() -> None:
    head = random_backbone(num_classes=1000).model.get_submodule("head")
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert head.weight.abs().max() <= 2
    assert not head.bias.any()


def test_a_norm_inside_the_head_is_not_renewed() -> None:
    head = load_backbone(BackboneSpec("test_convnext", pretrained=False), num_classes=3).model.get_submodule("head")
    assert torch.equal(head.get_parameter("norm.weight"), torch.ones_like(head.get_parameter("norm.weight")))
    assert not head.get_parameter("fc.bias").any()


def test_a_head_that_is_named_is_new_and_no_part_of_the_fingerprint() -> None:
    named, plain = random_backbone(head=("norm", "head")), random_backbone()
    assert outline_model(named.model).head == ("norm", "head")
    assert outline_model(random_backbone(head="head").model) == outline_model(plain.model)
    before = named.weights_hash
    assert before != plain.weights_hash
    torch.nn.init.zeros_(named.model.get_parameter("norm.weight"))
    assert weights_hash(named.model) == before
    with pytest.raises(ArgumentError, match="`head` names 'fc', which is no module of VisionTransformer"):
        random_backbone(head="fc")


def test_the_seed_alone_decides_the_weights() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(1)
        return load_backbone(RANDOM, num_classes=5, seed=seed).model.state_dict()

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_global_random_states_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    load_backbone(RANDOM, num_classes=5)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_the_hash_does_not_see_the_head() -> None:
    backbone = random_backbone()
    backbone.model.reset_classifier(7)
    assert weights_hash(backbone.model) == backbone.weights_hash


def test_the_hash_sees_one_changed_bit_of_the_backbone() -> None:
    model = load_backbone(RANDOM, num_classes=5).model
    before = weights_hash(model)
    with torch.no_grad():
        model.get_parameter("blocks.5.mlp.fc2.bias")[0] += 1e-6
    assert weights_hash(model) != before


def test_the_hash_sees_buffers_and_not_the_memory_layout() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    before = weights_hash(model)
    assert weights_hash(model.to(memory_format=torch.channels_last)) == before
    model.get_buffer("bn1.running_mean").add_(1)
    assert weights_hash(model) != before


def test_a_misspelt_name_gets_suggestions() -> None:
    with pytest.raises(
        ModelError, match=r"'vit_bse_patch16_224' is not a timm model. Close names: vit_base_patch16_224"
    ):
        load_backbone("vit_bse_patch16_224", num_classes=3)


def test_an_unknown_tag_is_refused_with_those_there_are() -> None:
    with pytest.raises(ModelError, match=r"test_vit has no tag 'nope'. It has: test_vit.r160_in1k."):
        load_backbone("test_vit.nope", num_classes=3)


def test_drop_path_of_a_model_that_has_none_is_refused() -> None:
    with pytest.raises(ModelError, match=r"vgg11 has no drop-path. Set `drop_path` to 0."):
        load_backbone(BackboneSpec("vgg11", pretrained=False), num_classes=3, drop_path=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "`num_classes` must be at least 1. Got 0."),
        ({"num_classes": 3, "drop_path": 1.0}, r"`drop_path` is a rate and must be in \[0, 1\). Got 1.0."),
        ({"num_classes": 3, "keep_head": True}, "`keep_head=True` needs a `checkpoint`"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        load_backbone(RANDOM, **options)


def test_without_the_hub_the_way_out_is_a_local_file() -> None:
    with pytest.raises(CheckpointError, match=r"the hub cannot be reached .* give the local file as `checkpoint`"):
        load_backbone("test_vit.r160_in1k", num_classes=3)


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(CheckpointError, match="timm has no pretrained weights for test_vit_relpos"):
        load_backbone("test_vit_relpos", num_classes=3)


def test_pretrained_weights_are_asked_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    create = timm.create_model

    def offline(name: str, *, pretrained: bool, **options: object) -> torch.nn.Module:
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    load_backbone("test_vit.r160_in1k", num_classes=3)
    load_backbone(RANDOM, num_classes=3)
    assert asked == [True, False]
