from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from sensitune.errors import ArgumentError, ModelError
from sensitune.training import fit_head


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=3)
    nn.init.normal_(model.head.weight, std=0.02)
    return model.eval()


def make_batches(seed: int = 1, batches: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(10, 3, 16, 16, generator=generator), torch.arange(10) % 3) for _ in range(batches)]


def whole(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    return images, labels


def test_the_head_ends_where_the_penalised_loss_of_the_standardised_features_is_flat() -> None:
    model = make_model().double()
    batches = [(images.double(), labels) for images, labels in make_batches()]
    found = fit_head(model, batches, penalties=[1e-2])
    images, labels = whole(batches)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    scale = features.std(0, correction=0)
    # The head reads plain features; on standardised ones its weight is as many times larger as they are smaller.
    weight = (model.head.weight.detach() * scale).requires_grad_(True)
    bias = (model.head.bias.detach() + model.head.weight.detach() @ features.mean(0)).requires_grad_(True)
    loss = functional.cross_entropy((features - features.mean(0)) / scale @ weight.T + bias, labels)
    total = loss + 0.5 * 1e-2 * weight.square().sum()
    assert max(float(each.abs().max()) for each in torch.autograd.grad(total, [weight, bias])) < 1e-5
    assert found.train_loss == pytest.approx(functional.cross_entropy(model(images), labels).item(), rel=1e-6)
    assert (found.penalty, found.accuracy) == (1e-2, None)


def test_the_strength_is_the_one_that_is_right_most_often_on_the_validation_images() -> None:
    train, validation = make_batches(), make_batches(seed=2)
    images, labels = whole(validation)
    reached = {}
    for penalty in (1e-4, 1e-2, 1.0):
        model = make_model()
        fit_head(model, train, penalties=[penalty])
        reached[penalty] = float((model(images).argmax(1) == labels).double().mean())
    model = make_model()
    found = fit_head(model, train, validation, penalties=[1e-4, 1e-2, 1.0])
    assert len(set(reached.values())) > 1
    assert found.accuracy == max(reached.values())
    assert found.penalty == max(each for each in reached if reached[each] == found.accuracy)


def test_without_validation_images_every_fifth_one_chooses_and_all_are_fitted() -> None:
    train = make_batches(batches=2)
    images, labels = whole(train)
    fifth = torch.arange(20) % 5 == 4
    apart = make_model()
    expected = fit_head(apart, [(images[~fifth], labels[~fifth])], [(images[fifth], labels[fifth])])
    model, again = make_model(), make_model()
    found = fit_head(model, train)
    fit_head(again, train, penalties=[expected.penalty])
    assert (found.penalty, found.accuracy) == (expected.penalty, expected.accuracy)
    torch.testing.assert_close(model.head.weight, again.head.weight)


def test_nothing_but_the_head_changes() -> None:
    model, before = make_model().train(), make_model().state_dict()
    fit_head(model, make_batches())
    after = model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.weight", "head.bias"]
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_head_of_several_layers_is_refused() -> None:
    model = make_model()
    model.head = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 3))
    with pytest.raises(ModelError, match="Only a head that is one linear layer with a bias can be fitted"):
        fit_head(model, make_batches())


@pytest.mark.parametrize("penalties", [[], [0.0], [1e-2, -1.0]])
def test_strengths_that_mean_nothing_are_refused(penalties: list[float]) -> None:
    with pytest.raises(ArgumentError, match="`penalties` must be numbers above 0"):
        fit_head(make_model(), make_batches(), penalties=penalties)
