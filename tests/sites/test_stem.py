"""The stem is a handful of layers at the model's beginning, and never the trunk behind it."""

from __future__ import annotations

import pytest
import timm
from newer import without_values
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sensitune.sites import ModelOutline, outline_model


def stems(outline: ModelOutline) -> set[str]:
    return {reason.split("`")[1] for reason in outline.frozen.values() if reason.startswith("stem: part of")}


@pytest.mark.parametrize(
    ("name", "stem", "head"),
    [
        ("densenet121", "features.conv0", "classifier"),
        ("dpn68", "features.conv1_1", "classifier"),
        ("inception_v4", "features.0", "last_linear"),
        ("tresnet_m", "body.conv1", "head.fc"),
        ("vgg11", "features.0", "head.fc"),
        ("vit_small_r26_s32_224", "patch_embed.backbone.stem", "head"),
        ("resnet10t", "conv1", "fc"),
        ("test_vit", "patch_embed", "head"),
    ],
)
def test_the_stem_is_where_the_first_convolution_is_and_ends_before_the_trunk(name: str, stem: str, head: str) -> None:
    model = without_values(lambda: timm.create_model(name, num_classes=5))
    outline = outline_model(model)
    assert stems(outline) == {stem}
    assert outline.head == (head,)
    frozen = sum(model.get_parameter(each).numel() for each, why in outline.frozen.items() if why.startswith("stem"))
    assert frozen <= 0.2 * outline.backbone_params


def test_the_stem_of_a_model_inside_another_is_the_stem_of_both() -> None:
    model = timm.create_model("test_convnext", num_classes=5)
    assert stems(outline_model(nn.Sequential(nn.Identity(), model))) == {
        f"1.{each}" for each in stems(outline_model(model))
    }


def test_a_convolutional_trunk_under_a_stems_name_is_ranked_but_for_its_beginning() -> None:
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=5)
    trunk = nn.Sequential(*(nn.Conv2d(12, 12, 3) for _ in range(20)))
    model.patch_embed = nn.ModuleDict({"backbone": nn.ModuleDict({"conv": nn.Conv2d(3, 12, 8), "trunk": trunk})})
    outline = outline_model(model)
    assert stems(outline) == {"patch_embed.backbone.conv"}
    assert "patch_embed.backbone.trunk.0.weight" in {site.id for site in outline.sites}


def test_tables_of_embeddings_are_the_stem_however_large() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = nn.ModuleDict({"words": nn.Embedding(900, 8), "places": nn.Embedding(90, 8)})
            self.mix = nn.Linear(8, 8)

    assert stems(outline_model(Words())) == {"embeddings"}
