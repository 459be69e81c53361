"""A pass with dropout and drop-path on: only those, with masks that the seed fixes, and the model left as found."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers.drop import DropPath
from torch import nn
from torch.nn import functional
from torchvision.ops import StochasticDepth
from transformers import BeitConfig, BeitForImageClassification

from sensitune.errors import ModelError
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.sensitivity._dropout import dropout_modules, masks_of

Batches = list[tuple[torch.Tensor, torch.Tensor]]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.5)
        self.path = DropPath(0.3)
        self.fc2 = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.fc1(x))
        logits: torch.Tensor = self.head(x + self.path(self.fc2(self.drop(x))))
        return logits


@pytest.fixture
def model() -> Network:
    return Network()


@pytest.fixture
def batches() -> Batches:
    return [(torch.randn(6, 4), torch.randint(3, (6,))) for _ in range(3)]


def estimate(model: nn.Module, batches: Any, **options: Any) -> Sensitivity:
    return estimate_sensitivity(model, batches, **{"score_dtype": torch.float64, "dropout": True, **options})


def same(one: Sensitivity, other: Sensitivity) -> bool:
    return all(torch.equal(score, other.scores[name]) for name, score in one.scores.items())


def test_the_scores_are_those_of_a_loop_with_the_same_masks(model: Network, batches: Batches) -> None:
    found = estimate(model, batches, seed=7)
    model.eval()
    model.drop.train()
    model.path.train()
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for index, (x, y) in enumerate(batches):
        with masks_of(7, index, model):
            loss = functional.cross_entropy(model(x), y)
        for (name, _), gradient in zip(
            model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            expected[name] += gradient**2
    for name, score in found.scores.items():
        torch.testing.assert_close(score.float(), expected[name], rtol=1e-5, atol=1e-12)


def test_the_seed_alone_decides_on_the_masks(model: Network, batches: Batches) -> None:
    first = estimate(model, batches, seed=1)
    torch.manual_seed(99)
    assert same(first, estimate(model, iter(batches), seed=1))
    assert not same(first, estimate(model, batches, seed=2))
    assert not same(first, estimate(model, batches, dropout=False))


def test_every_batch_has_masks_of_its_own(model: Network) -> None:
    drawn = []
    for index in range(3):
        with masks_of(0, index, model):
            drawn.append(tuple(torch.rand(4).tolist()))
    assert len(set(drawn)) == 3


def test_only_dropout_and_drop_path_are_in_training_mode(model: Network, batches: Batches) -> None:
    seen: list[set[str]] = []

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.append({name for name, module in model.named_modules() if module.training})
        return functional.cross_entropy(model(batch[0]), batch[1])

    estimate(model, batches, loss_fn=loss_fn)
    estimate(model, batches, loss_fn=loss_fn, dropout=False)
    assert seen == [{"drop", "path"}] * 3 + [set()] * 3


def test_the_model_and_the_random_state_are_left_as_found(model: Network, batches: Batches) -> None:
    model.fc2.eval()
    flags = [module.training for module in model.modules()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch_state, python_state, numpy_state = (
        torch.get_rng_state(),
        random.getstate(),
        pickle.dumps(np.random.get_state()),
    )
    estimate(model, batches)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert pickle.dumps(np.random.get_state()) == numpy_state


def test_the_data_are_those_of_a_pass_without(model: Network) -> None:
    def noisy(into: list[torch.Tensor]) -> Any:
        for _ in range(3):
            into.append(torch.randn(6, 4))
            yield into[-1], torch.tensor([0, 1, 2, 0, 1, 2])

    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for dropout, into in seen.items():
        torch.manual_seed(5)
        estimate(model, noisy(into), dropout=dropout)
    assert all(torch.equal(x, y) for x, y in zip(seen[True], seen[False], strict=True))


def test_the_metadata_say_so(model: Network, batches: Batches) -> None:
    with_masks, without = estimate(model, batches, seed=4).metadata, estimate(model, batches, dropout=False).metadata
    assert (with_masks["dropout"], with_masks["seed"]) == (True, 4)
    assert without["dropout"] is False
    assert "seed" not in without


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_the_drop_path_of_timm_and_transformers_is_found(rate: float) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, drop_path_rate=rate)
    config = BeitConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=8,
        drop_path_rate=rate,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    for model in (vit, BeitForImageClassification(config)):
        if rate:
            assert {type(module).__name__ for module in dropout_modules(model)} == {
                "DropPath" if model is vit else "BeitDropPath"
            }
        else:
            with pytest.raises(
                ModelError, match=r"`dropout=True` needs a model that drops something; .* drop_path_rat"
            ):
                dropout_modules(model)


def test_other_modules_with_a_p_are_left_alone() -> None:
    parts = nn.Sequential(nn.TripletMarginLoss(p=2.0), nn.Linear(2, 2), nn.Dropout(0.0), StochasticDepth(0.1, "row"))
    assert dropout_modules(parts) == [parts[3]]
    assert dropout_modules(nn.Sequential(nn.AlphaDropout(0.1), nn.Dropout2d(0.1))) != []


def test_a_model_that_drops_nothing_is_refused(batches: Batches) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    with pytest.raises(ModelError, match="Sequential has no dropout or drop-path module with a rate above 0. Make the"):
        estimate_sensitivity(model, batches, dropout=True)


@pytest.mark.gpu
def test_masks_on_a_gpu_depend_on_the_seed_alone(model: Network, batches: Batches) -> None:
    model.cuda()
    first, state = estimate(model, batches, seed=1), torch.cuda.get_rng_state()
    torch.rand(3, device="cuda")
    assert same(first, estimate(model, batches, seed=1))
    assert not same(first, estimate(model, batches, seed=2))
    torch.cuda.set_rng_state(state)
    estimate(model, batches)
    assert torch.equal(torch.cuda.get_rng_state(), state)
