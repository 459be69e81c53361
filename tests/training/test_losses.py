from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensitune.training import Recipe
from sensitune.training._loss import logits_of, training_loss


class Wrapped(nn.Module):
    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=pixel_values.flatten(1))


PIXELS = torch.randn(5, 1, 1, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 1, 0])


def test_logits_come_out_of_either_kind_of_model() -> None:
    assert torch.equal(logits_of(nn.Flatten(), PIXELS), logits_of(Wrapped(), PIXELS))


def test_the_loss_is_the_mean_cross_entropy() -> None:
    loss, logits = training_loss(nn.Flatten(), PIXELS, LABELS, Recipe())
    expected = -functional.log_softmax(logits, 1)[torch.arange(5), LABELS].mean()
    torch.testing.assert_close(loss, expected)


def test_label_smoothing_spreads_the_target() -> None:
    loss, logits = training_loss(nn.Flatten(), PIXELS, LABELS, Recipe(label_smoothing=0.3))
    target = functional.one_hot(LABELS, 3) * 0.7 + 0.1
    torch.testing.assert_close(loss, -(target * functional.log_softmax(logits, 1)).sum(1).mean())


def test_mixup_mixes_images_and_targets_alike() -> None:
    torch.manual_seed(0)
    loss, logits = training_loss(nn.Flatten(), PIXELS, LABELS, Recipe(mixup=0.8))
    torch.manual_seed(0)
    share = float(torch.distributions.Beta(0.8, 0.8).sample())
    order = torch.randperm(5)
    flat = PIXELS.flatten(1)
    torch.testing.assert_close(logits, share * flat + (1 - share) * flat[order])
    target = share * functional.one_hot(LABELS, 3) + (1 - share) * functional.one_hot(LABELS[order], 3)
    torch.testing.assert_close(loss, -(target * functional.log_softmax(logits, 1)).sum(1).mean())
