from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from sensitune.errors import ModelError
from sensitune.training import fit_head


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=3)
    nn.init.normal_(model.head.weight, std=0.02)
    return model


def make_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(10, 3, 16, 16, generator=generator), torch.arange(10) % 3) for _ in range(3)]


def objective(model: nn.Module) -> tuple[Tensor, Tensor]:
    images, labels = (torch.cat(each) for each in zip(*make_batches(), strict=True))
    loss = functional.cross_entropy(model(images), labels)
    return loss, loss + 0.5 * 1e-2 * model.head.weight.square().sum()


def test_the_head_ends_where_the_penalised_loss_is_flat() -> None:
    model = make_model()
    loss = fit_head(model, make_batches())
    found, total = objective(model)
    gradients = torch.autograd.grad(total, [model.head.weight, model.head.bias])
    assert max(float(each.abs().max()) for each in gradients) < 1e-3
    assert loss == pytest.approx(float(found.detach()), rel=1e-5)
    assert loss < float(objective(make_model())[0].detach())


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
