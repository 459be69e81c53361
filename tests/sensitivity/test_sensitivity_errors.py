"""Bad input to the pass gets one clear sentence."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification

from sensitune.errors import AllocationMismatchError, ArgumentError, DataError, ModelError, NonFiniteError
from sensitune.sensitivity import estimate_sensitivity
from sensitune.sites import outline_model


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.fc(x).tanh())
        return logits


@pytest.fixture
def model() -> Classifier:
    return Classifier()


def batches(num: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(num)]


def test_no_batches(model: Classifier) -> None:
    with pytest.raises(DataError, match="`batches` is empty: there is nothing to estimate the sensitivity on"):
        estimate_sensitivity(model, [], num_batches=4)


@pytest.mark.parametrize("as_iterator", [False, True])
def test_fewer_batches_than_asked_for(model: Classifier, as_iterator: bool) -> None:
    found = iter(batches()) if as_iterator else batches()
    with pytest.raises(DataError, match=r"`batches` ends after 3; `num_batches` asks for 16. Lower `num_batches`"):
        estimate_sensitivity(model, found, num_batches=16)


def test_a_list_that_is_too_short_is_refused_before_any_work(model: Classifier) -> None:
    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        raise AssertionError("no batch should have been read")

    with pytest.raises(DataError, match="ends after 3"):
        estimate_sensitivity(model, batches(), num_batches=4, loss_fn=loss_fn)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_batches": 0}, r"`num_batches` must be at least 1, or None for all. Got 0."),
        ({"micro_batch_size": 0}, r"`micro_batch_size` must be at least 1, or None for all. Got 0."),
        ({"criterion": "fisher"}, r"`criterion` must be one of squared_gradient, .*, random. Got 'fisher'."),
        ({"score_dtype": torch.float16}, r"`score_dtype` must be one of torch.float32, .* Got torch.float16."),
        ({"sites": []}, r"`sites` must hold at least one site. Got an empty list."),
        ({"batches": None}, r"`batches` must be given for the criterion 'squared_gradient'. Got None."),
    ],
)
def test_an_option_out_of_range(model: Classifier, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        estimate_sensitivity(model, **{"batches": batches(), **options})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_batch(model: Classifier, value: float) -> None:
    data = batches()
    data[1][0][0] = value
    with pytest.raises(NonFiniteError, match=r"The loss of batch 1 \(the first is 0\) is (nan|inf)"):
        estimate_sensitivity(model, data, loss_fn=lambda m, batch: m.fc(batch[0]).sum())


def test_a_score_that_is_not_finite_names_its_batch_and_parameter(model: Classifier) -> None:
    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        # The slope of a square root at zero is infinite, its value is not.
        return functional.cross_entropy(model(batch[0]), batch[1]) + (model.fc.bias * batch[0].sum() * 0).sum().sqrt()

    with pytest.raises(
        NonFiniteError, match=r"Batch 0 \(the first is 0\) gives `fc.bias` a score that is not a finite"
    ):
        estimate_sensitivity(model, batches(), loss_fn=loss_fn)


def test_a_zero_head_makes_every_gradient_zero(model: Classifier) -> None:
    nn.init.zeros_(model.head.weight)
    with pytest.raises(
        ModelError, match=r"Every gradient is zero, .* The head \(head\) must not be zero: initialise it"
    ):
        estimate_sensitivity(model, batches())


def test_a_loss_cut_off_from_the_model(model: Classifier) -> None:
    with pytest.raises(
        ModelError, match=r"The loss of batch 0 .* depends on no ranked parameter. Look for `detach\(\)`"
    ):
        estimate_sensitivity(model, batches(), loss_fn=lambda m, batch: m(batch[0]).detach().sum())


@pytest.mark.parametrize("loss_fn", [lambda m, batch: m(batch[0]), lambda m, batch: 1.0])
def test_a_loss_that_is_no_scalar(model: Classifier, loss_fn: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"The loss of a batch must be a scalar tensor. Got (shape \(5, 3\)|float)."
    ):
        estimate_sensitivity(model, batches(), loss_fn=loss_fn)


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_out_of_range_is_named_with_the_range(model: Classifier, label: int) -> None:
    data = batches()
    data[0][1][2] = label
    sentence = f"Label {label} is out of range: the model has 3 logits, so labels lie between 0 and 2"
    with pytest.raises(DataError, match=sentence):
        estimate_sensitivity(model, data)


def test_a_label_out_of_range_is_found_before_a_transformers_model_runs() -> None:
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=8,
        num_labels=3,
    )
    batch = {"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 7])}
    with pytest.raises(DataError, match="Label 7 is out of range: the model has 3 logits"):
        estimate_sensitivity(ViTForImageClassification(config), [batch])
    with pytest.raises(ModelError, match="returned no loss for a batch with pixel_values. Add `labels` to the batch"):
        estimate_sensitivity(ViTForImageClassification(config), [{"pixel_values": batch["pixel_values"]}])


def test_a_batch_of_another_form(model: Classifier) -> None:
    with pytest.raises(DataError, match=r"A batch must be `\(inputs, labels\)` or a dict. Got Tensor of length 5."):
        estimate_sensitivity(model, [torch.randn(5, 4)])
    with pytest.raises(DataError, match=r"Got list of length 3. Give `loss_fn` for other batches."):
        estimate_sensitivity(model, [[torch.randn(5, 4)] * 3])


@pytest.mark.parametrize("labels", [torch.empty(0, dtype=torch.int64), torch.full((5,), -100)])
def test_a_batch_without_a_labelled_sample(model: Classifier, labels: torch.Tensor) -> None:
    data = [*batches(1), (torch.randn(len(labels), 4), labels)]
    with pytest.raises(DataError, match=r"Batch 1 \(the first is 0\) holds no labelled sample"):
        estimate_sensitivity(model, data)


def test_micro_batches_of_something_that_cannot_be_cut(model: Classifier) -> None:
    with pytest.raises(DataError, match="`micro_batch_size` needs batches that hold tensors"):
        estimate_sensitivity(model, ["text"], micro_batch_size=2, loss_fn=lambda m, batch: m.fc.weight.sum())


def test_a_model_that_returns_no_logits(model: Classifier) -> None:
    model.forward = lambda x: {"features": x}  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ModelError, match="The model must return logits. Got dict. Give `loss_fn`"):
        estimate_sensitivity(model, batches())


def test_sites_of_another_model(model: Classifier) -> None:
    outline = outline_model(model)
    larger = dataclasses.replace(outline.sites[0], shape=(6, 5))
    with pytest.raises(AllocationMismatchError, match=r"`fc.weight` of shape \(6, 5\) .* has shape \(6, 4\)"):
        estimate_sensitivity(model, batches(), sites=[larger])
    beyond = dataclasses.replace(outline.sites[0], shape=(4, 4), rows=(4, 8))
    with pytest.raises(AllocationMismatchError, match=r"`fc.weight` of shape \(4, 4\) .* has shape \(6, 4\)"):
        estimate_sensitivity(model, batches(), sites=[beyond])
    unknown = dataclasses.replace(outline.sites[0], id="x", parameter="x")
    with pytest.raises(AllocationMismatchError, match=r"Site `x` .* which has no such parameter at `x`"):
        estimate_sensitivity(model, batches(), sites=dataclasses.replace(outline, sites=(unknown,)))


@pytest.mark.parametrize("size", [5, 16])
def test_a_segmentation_needs_a_loss_of_its_own(size: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    batch = torch.randn(2, 3, size, size), torch.randint(5, (2, size, size))
    with pytest.raises(DataError, match=r"Which axis holds the classes cannot be told from logits of shape \(2, 5, .*"):
        estimate_sensitivity(model, [batch])
    loss = functional.cross_entropy(model(batch[0]), batch[1])
    given = estimate_sensitivity(model, [batch], loss_fn=lambda m, b: functional.cross_entropy(m(b[0]), b[1]))
    assert given.metadata["losses"] == [pytest.approx(loss.item())]


class Tokens(Classifier):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[..., None].expand(*x.shape, 4))


def test_tokens_have_their_classes_last_and_as_many_tokens_as_classes_could_be_either() -> None:
    model = Tokens()
    x, y = torch.randn(2, 7), torch.randint(3, (2, 7))
    loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
    assert estimate_sensitivity(model, [(x, y)]).metadata["losses"] == [pytest.approx(loss.item())]
    with pytest.raises(DataError, match="Which axis holds the classes cannot be told"):
        estimate_sensitivity(model, [(torch.randn(2, 3), torch.randint(3, (2, 3)))])


@pytest.mark.parametrize("labels", [torch.rand(4, 1), torch.zeros(4, dtype=torch.long)])
def test_one_logit_is_no_classification(model: Classifier, labels: torch.Tensor) -> None:
    model.head = nn.Linear(6, 1)
    with pytest.raises(DataError, match=r"there must be at least 2 classes. Give `loss_fn`, for a regression"):
        estimate_sensitivity(model, [(torch.randn(4, 4), labels)])


@pytest.mark.parametrize("labels", [torch.eye(3)[[0, 1, 2, 0]] + 1, torch.rand(4, 2), torch.randn(4, 3), torch.rand(4)])
def test_numbers_that_are_no_probabilities_need_a_loss_of_their_own(model: Classifier, labels: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"must be probabilities of the classes: .* Give `loss_fn`"):
        estimate_sensitivity(model, [(torch.randn(4, 4), labels)])


def test_smoothed_labels_are_probabilities(model: Classifier) -> None:
    x, labels = torch.randn(4, 4), torch.eye(3)[[0, 1, 2, 0]] * 0.9 + 0.1 / 3
    loss = functional.cross_entropy(model(x), labels)
    assert estimate_sensitivity(model, [(x, labels)]).metadata["losses"] == [pytest.approx(loss.item())]
