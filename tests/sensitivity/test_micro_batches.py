"""Micro-batches mean what their batch means, whatever the loss is a mean of; what has no such meaning is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from sensitune.errors import DataError
from sensitune.sensitivity import Sensitivity, estimate_sensitivity


class Pixels(nn.Module):
    """Three classes for each of eight pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Conv1d(6, 3, 1)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.drop(self.conv(x).tanh()))
        return logits


@pytest.fixture
def model() -> Pixels:
    torch.manual_seed(0)
    return Pixels().double()


def batch(ignored: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.randn(5, 2, 8, dtype=torch.float64), torch.randint(3, (5, 8))
    if ignored is not None:
        y[0, 1:], y[1, :4], y[4] = ignored, ignored, ignored
    return x, y


def estimate(model: nn.Module, batches: Any, **options: Any) -> Sensitivity:
    return estimate_sensitivity(model, batches, score_dtype=torch.float64, **options)


def assert_the_same_in_pieces(model: nn.Module, batches: Any, **options: Any) -> None:
    whole = estimate(model, batches, **options)
    for micro_batch_size in (1, 2, 3, 4):
        pieces = estimate(model, batches, micro_batch_size=micro_batch_size, **options)
        torch.testing.assert_close(pieces.metadata["losses"], whole.metadata["losses"])
        for name, score in whole.scores.items():
            torch.testing.assert_close(pieces.scores[name], score, rtol=1e-9, atol=0)


@pytest.mark.parametrize("ignored", [None, -100, -1, 0, 2, 255])
def test_the_index_that_a_loss_ignores_is_told_by_the_loss(model: Pixels, ignored: int | None) -> None:
    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], ignore_index=-100 if ignored is None else ignored)

    # The batch in which nothing is ignored comes first, and tells nothing.
    assert_the_same_in_pieces(model, [batch(None), batch(ignored)], loss_fn=loss_fn)


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda logits, y: functional.cross_entropy(logits, y, reduction="sum"),
        lambda logits, y: functional.cross_entropy(logits, y, reduction="none").mean(1).mean(),
        lambda logits, y: functional.cross_entropy(logits, y, reduction="none").mean(1).sum(),
        lambda logits, y: functional.cross_entropy(logits[..., :-1], y[..., 1:], ignore_index=2),
        lambda logits, y: functional.mse_loss(logits[:, 0], y.to(logits)),
    ],
    ids=["sum", "mean over samples of means", "sum of means", "shifted by one", "regression"],
)
def test_sums_and_other_means_are_exact(model: Pixels, loss_of: Callable[..., torch.Tensor]) -> None:
    batches = [batch(None), batch(2)]
    assert_the_same_in_pieces(model, batches, loss_fn=lambda model, batch: loss_of(model(batch[0]), batch[1]))


def test_a_transformers_segmentation_ignores_what_its_configuration_says() -> None:
    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        num_labels=3,
        semantic_loss_ignore_index=255,
    )
    model = SegformerForSemanticSegmentation(config).double().eval()
    labels = torch.randint(3, (2, 32, 32))
    labels[0, :30] = 255
    images = {"pixel_values": torch.randn(2, 3, 32, 32, dtype=torch.float64), "labels": labels}
    whole, pieces = (estimate(model, [images], micro_batch_size=size) for size in (None, 1))
    for name, score in whole.scores.items():
        torch.testing.assert_close(pieces.scores[name], score, rtol=1e-6, atol=1e-20)


def test_labels_in_a_list_are_cut_with_their_samples(model: Pixels) -> None:
    x, y = batch(None)

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        assert len(batch["labels"]) == len(batch["x"])
        losses = [
            functional.cross_entropy(each[None], label["at"][None])
            for each, label in zip(model(batch["x"]), batch["labels"], strict=True)
        ]
        return torch.stack(losses).mean()

    assert_the_same_in_pieces(model, [{"x": x, "labels": [{"at": label} for label in y]}], loss_fn=loss_fn)


def contrastive(model: nn.Module, batch: Any) -> torch.Tensor:
    features = functional.normalize(model(batch[0]).flatten(1), dim=1)
    return functional.cross_entropy(features @ features.T / 0.1, torch.arange(len(features)))


def class_weighted(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([0.1, 1.0, 5.0]).double())


def whitened(model: nn.Module, batch: Any) -> torch.Tensor:
    logits = model(batch[0])
    return functional.cross_entropy(logits - logits.mean(0, keepdim=True), batch[1])


def noisy(model: nn.Module, batch: Any) -> torch.Tensor:
    logits = model(batch[0])
    return functional.cross_entropy(logits + torch.randn_like(logits), batch[1])


@pytest.mark.parametrize("loss_fn", [contrastive, class_weighted, whitened, noisy])
@pytest.mark.parametrize("micro_batch_size", [2, 4])
def test_a_loss_that_couples_its_samples_is_refused(model: Pixels, loss_fn: Any, micro_batch_size: int) -> None:
    with pytest.raises(DataError, match=r"not made up of the losses of its micro-batches: .* Leave out `micro_batch"):
        estimate(model, [batch(None)], loss_fn=loss_fn, micro_batch_size=micro_batch_size)
    assert estimate(model, [batch(None)], loss_fn=loss_fn).metadata["num_batches"] == 1


def test_dropout_in_the_pass_does_not_look_like_coupling(model: Pixels) -> None:
    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], ignore_index=255)

    x, y = batch(255)
    dropped = estimate(model, [(x, y)], loss_fn=loss_fn, micro_batch_size=2, dropout=True)
    # Where nothing is left to drop, the masks do not matter, and the scores are those of the whole batch.
    model.drop.p = 1e-12
    expected = estimate(model, [(x, y)], loss_fn=loss_fn, dropout=True)
    actual = estimate(model, [(x, y)], loss_fn=loss_fn, micro_batch_size=2, dropout=True)
    for name, score in expected.scores.items():
        torch.testing.assert_close(actual.scores[name], score, rtol=1e-6, atol=0)
        assert not torch.allclose(dropped.scores[name], score, rtol=1e-2)
