"""A backbone made again from memory is the one that its files give."""

from __future__ import annotations

import pytest
import torch
from timm.layers.drop import DropPath

from sensitune.backbones import Backbone, BackboneSpec, load_backbone, rebuild_backbone
from sensitune.sites import find_head


def drop_rates(backbone: Backbone) -> list[float]:
    return [module.drop_prob for module in backbone.model.modules() if isinstance(module, DropPath)]


@pytest.mark.parametrize(
    "spec",
    [
        BackboneSpec("test_vit", pretrained=False, image_size=32, num_blocks=3),
        BackboneSpec("test_convnext", pretrained=False, image_size=32, head=("head.norm", "head.fc")),
    ],
    ids=lambda spec: spec.name,
)
@pytest.mark.parametrize("drop_path", [0.0, 0.2])
def test_it_is_bit_for_bit_what_loading_gives(spec: BackboneSpec, drop_path: float) -> None:
    loaded = load_backbone(spec, num_classes=3, drop_path=drop_path, seed=5)
    state = torch.random.get_rng_state()
    rebuilt = rebuild_backbone(load_backbone(spec, num_classes=3, seed=5), num_classes=3, drop_path=drop_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    expected, found = loaded.model.state_dict(), rebuilt.model.state_dict()
    assert list(found) == list(expected)
    assert find_head(rebuilt.model) == find_head(loaded.model)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert drop_rates(rebuilt) == drop_rates(loaded)
    assert bool(drop_rates(rebuilt)) == (drop_path > 0)
    images, answers = torch.randn(4, 3, 32, 32), []
    for model in (loaded.model.train(), rebuilt.model.train()):
        torch.manual_seed(1)
        answers.append(model(images))
    assert torch.equal(*answers)


def test_it_can_be_changed_without_touching_the_first() -> None:
    first = load_backbone(BackboneSpec("test_vit", pretrained=False, image_size=32), num_classes=3)
    before = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    second = rebuild_backbone(first, num_classes=3)
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.model.state_dict().items())


@pytest.mark.parametrize("drop_path", [0.0, 0.2])
def test_drop_path_is_what_is_asked_for_in_models_that_have_a_rate_of_their_own(drop_path: float) -> None:
    spec = BackboneSpec("swin_tiny_patch4_window7_224", pretrained=False, image_size=64)
    first = load_backbone(spec, num_classes=3, seed=0)
    model = rebuild_backbone(first, num_classes=3, drop_path=drop_path).model
    rates = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(drop_path)
