"""Scores of weights that require no gradient: made of each layer's input and its output's gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from newer import checkpoint_activations
from small_language_models import tiny_gpt2, tiny_llama
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sensitune.allocation import allocate
from sensitune.errors import ArgumentError, ModelError, OutputError
from sensitune.sensitivity import Sensitivity, estimate_sensitivity


class Mixed(nn.Module):
    """Linear layers of every kind: called once, twice, never, with an output changed in place, in attention; a conv."""

    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.first = nn.Linear(8, 8)
        self.shared = nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.relu = nn.ReLU(inplace=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.attention.in_proj_bias = None  # the gradient of the keys' bias is zero but for rounding
        self.idle = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(self.norm(self.relu(self.first(x))))
        x = x + self.shared(torch.tanh(x))
        self.idle(x)  # its output has no part in the loss
        y: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return x + y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        x = checkpoint(self.middle, x, use_reentrant=False) if self.checkpointed else self.middle(x)
        logits: torch.Tensor = self.head(x.mean(1))
        return logits


def mixed(**options: Any) -> Mixed:
    torch.manual_seed(1)
    return Mixed(**options).double()


def pairs(sizes: tuple[int, ...] = (5, 4, 7)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(2)
    return [(torch.randn(size, 5, 6, dtype=torch.float64), torch.randint(3, (size,))) for size in sizes]


def tokens(vocabulary: int = 20) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    found = [torch.randint(vocabulary, (3, 6)) for _ in range(2)]
    return [{"input_ids": ids, "labels": ids} for ids in found]


def score(model: nn.Module, batches: Any, **options: Any) -> Sensitivity:
    return estimate_sensitivity(model, batches, **{"score_dtype": torch.float64, **options})


def assert_same(found: Sensitivity, expected: Sensitivity, rtol: float = 1e-9) -> None:
    assert found.sites == expected.sites
    for name, value in expected.scores.items():
        torch.testing.assert_close(found.scores[name], value, rtol=rtol, atol=1e-18)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_the_scores_are_those_of_the_weights_own_gradients(micro_batch_size: int | None, checkpointed: bool) -> None:
    expected = score(mixed(), pairs())
    found = score(mixed(checkpointed=checkpointed), pairs(), by_layer=True, micro_batch_size=micro_batch_size)
    assert_same(found, expected)
    assert all(bool(found.scores[name].any()) for name in ("first.weight", "shared.weight", "attention.out_proj.bias"))
    assert found.metadata["without_gradient"] == expected.metadata["without_gradient"]


def test_the_scores_are_the_squares_of_the_gradients_of_the_mean_loss() -> None:
    model, batches = mixed().eval(), pairs()
    expected = torch.zeros(8, 8, dtype=torch.float64)
    for x, y in batches:
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(x), y), [model.shared.weight])
        expected += gradient**2
    found = score(model, batches, by_layer=True).scores["shared.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("criterion", ["weight_gradient", "gradient_over_weight", "absolute_gradient_sum"])
def test_every_criterion_works_by_layer(criterion: Any) -> None:
    options = {"criterion": criterion, "keep_gradients": True, "keep_halves": True}
    found, expected = (score(mixed(), pairs((5, 4, 7, 3)), by_layer=by, **options) for by in (True, False))
    assert_same(found, expected, rtol=1e-8)
    assert found.gradients is not None
    assert expected.gradients is not None
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_language_models_are_scored_alike_by_layer(make: Any) -> None:
    batches = tokens()
    if make is tiny_gpt2:
        batches = [{"input_ids": each["input_ids"], "labels": torch.tensor([0, 1, 2])} for each in batches]
    expected = score(make().double(), batches)
    assert_same(score(make().double(), batches, by_layer=True), expected)


def test_no_linear_weight_requires_a_gradient_while_it_is_scored_by_layer() -> None:
    model = mixed()
    seen = []
    model.first.register_forward_hook(lambda module, *_: seen.append((module.weight.requires_grad, module.weight.grad)))
    score(model, pairs(), by_layer=True)
    assert seen == [(False, None)] * 3


def test_the_model_is_left_as_found_by_layer() -> None:
    model = mixed()
    hooks = {name: dict(module._forward_hooks) for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score(model, pairs(), by_layer=True)
    assert hooks == {name: dict(module._forward_hooks) for name, module in model.named_modules()}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_sums_of_a_half_precision_model_are_float32() -> None:
    """A sum in bfloat16 would not grow any more after some hundred batches of equal gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).bfloat16()
    batch = (torch.randn(6, 4), torch.randint(3, (6,)))
    for by_layer in (False, True):
        one = estimate_sensitivity(model, [batch], by_layer=by_layer)
        many = estimate_sensitivity(model, [batch] * 600, by_layer=by_layer)
        for name, value in one.scores.items():
            assert many.scores[name].dtype == torch.float32
            torch.testing.assert_close(many.scores[name], 600 * value, rtol=1e-4, atol=0)


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_an_offloaded_model_has_the_same_scores(place: str, tmp_path: Path) -> None:
    expected = score(tiny_llama().double(), tokens())
    model: nn.Module = tiny_llama().double()
    if place == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert_same(score(model, tokens()), expected)
    assert_same(score(model, tokens(), micro_batch_size=2), expected)


@pytest.mark.parametrize("offloaded", [False, True])
@pytest.mark.parametrize("by_layer", [False, True])
def test_activation_checkpointing_is_kept_and_the_scores_are_the_same(by_layer: bool, offloaded: bool) -> None:
    expected = score(tiny_llama().double(), tokens())
    model = tiny_llama().double()
    checkpoint_activations(model)
    calls: list[bool] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, *_: calls.append(module.training))
    layer = model.model.layers[0]
    before = layer._gradient_checkpointing_func, layer.training
    if offloaded:
        cpu_offload(model, execution_device=torch.device("cpu"))
    assert_same(score(model, tokens(), by_layer=by_layer), expected)
    assert calls == [False] * 4  # each of two batches, again while backward runs
    assert before == (layer._gradient_checkpointing_func, layer.training)


def test_an_offloaded_weight_has_no_value_for_a_criterion_that_reads_it() -> None:
    model = tiny_llama()
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(ModelError, match="is offloaded and not at hand .* Choose one that reads the gradients alone"):
        score(model, tokens(), criterion="weight_gradient")


@pytest.mark.parametrize("criterion", ["squared_gradient", "absolute_gradient_sum", "magnitude"])
def test_scores_that_go_to_a_file_are_the_same_and_stay_there(criterion: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.safetensors"
    data = {"keep_gradients": True, "micro_batch_size": 2} if criterion != "magnitude" else {}
    expected = score(mixed(), pairs(), criterion=criterion, **data)
    found = score(mixed(), pairs(), criterion=criterion, score_file=path, by_layer=True, **data)
    assert_same(found, expected)
    assert [each.name for each in path.parent.iterdir()] == ["scores.safetensors"]
    assert_same(Sensitivity.load(path), expected)
    assert allocate(found, budget=100).structured == allocate(expected, budget=100).structured
    path.unlink()
    with pytest.raises(Exception, match="scores.safetensors"):
        found.scores["first.weight"]


def test_a_score_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="could not be written"):
        score(mixed(), pairs(), score_file=tmp_path / "file" / "scores.safetensors")
    with pytest.raises(ArgumentError, match="`score_file` keeps the scores on disk. Leave `score_device` out"):
        score(mixed(), pairs(), score_file=tmp_path / "scores.safetensors", score_device="cpu")
