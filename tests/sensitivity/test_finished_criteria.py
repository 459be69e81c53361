"""Criteria that are finished after the last batch, against plain loops in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.sites import Site

Batches = list[tuple[torch.Tensor, torch.Tensor]]
Gradients = list[dict[str, torch.Tensor]]


class Attention(nn.Module):
    """One fused projection, so that the sites of a parameter are slices of it."""

    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        logits: torch.Tensor = self.head(self.proj(functional.scaled_dot_product_attention(q, k, v)).mean(dim=1))
        return logits


@pytest.fixture
def model() -> Attention:
    return Attention().double()


@pytest.fixture
def batches() -> Batches:
    return [(torch.randn(size, 4, 6, dtype=torch.float64), torch.randint(3, (size,))) for size in (5, 4, 7, 3)]


def plain_loop(model: nn.Module, batches: Batches) -> Gradients:
    """The gradient of each batch's mean loss."""
    parameters = dict(model.named_parameters())
    found = []
    for x, y in batches:
        gradients = torch.autograd.grad(functional.cross_entropy(model(x), y), list(parameters.values()))
        found.append(dict(zip(parameters, gradients, strict=True)))
    return found


def absolute_gradient_sum(gradients: Gradients, site: Site) -> torch.Tensor:
    return sum(site.of(g[site.parameter]) for g in gradients).abs()  # type: ignore[union-attr]


def squares(gradients: Gradients, site: Site) -> torch.Tensor:
    return sum(site.of(g[site.parameter]) ** 2 for g in gradients)  # type: ignore[return-value]


REFERENCES: dict[str, Callable[[Gradients, Site], torch.Tensor]] = {
    "absolute_gradient_sum": absolute_gradient_sum,
    "squared_gradient": squares,
}


def without_keys_bias(sensitivity: Sensitivity) -> list[Site]:
    """The sites whose gradient is not zero but for rounding."""
    return [site for site in sensitivity.sites if site.id != "qkv.bias[k]"]


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 2}, {"micro_batch_size": 1}, {"score_device": "cpu"}])
@pytest.mark.parametrize("criterion", REFERENCES)
def test_the_score_is_what_the_formula_says(
    model: Attention, batches: Batches, criterion: str, options: dict[str, Any]
) -> None:
    expected = plain_loop(model, batches)
    found = estimate_sensitivity(model, batches, criterion=criterion, score_dtype=torch.float64, **options)
    assert len(without_keys_bias(found)) == 7
    for site in without_keys_bias(found):
        torch.testing.assert_close(found.score_of(site), REFERENCES[criterion](expected, site), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("criterion", REFERENCES)
def test_scores_kept_in_bfloat16_are_those_of_float32_but_for_rounding(
    model: Attention, batches: Batches, criterion: str
) -> None:
    exact = estimate_sensitivity(model, batches, criterion=criterion)
    half = estimate_sensitivity(model, batches, criterion=criterion, score_dtype=torch.bfloat16)
    for site in without_keys_bias(exact):
        score = exact.score_of(site)
        assert half.score_of(site).dtype == torch.bfloat16
        torch.testing.assert_close(half.score_of(site).float(), score, rtol=0.05, atol=0.02 * float(score.max()))


@pytest.mark.parametrize("criterion", REFERENCES)
def test_large_parameters_are_folded_in_chunks(
    model: Attention, batches: Batches, criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = estimate_sensitivity(model, batches, criterion=criterion, keep_gradients=True)
    monkeypatch.setattr("sensitune.sensitivity._accumulator._CHUNK", 5)
    pieces = estimate_sensitivity(model, batches, criterion=criterion, keep_gradients=True)
    for site in whole.sites:
        assert torch.equal(pieces.score_of(site), whole.score_of(site))
        assert torch.equal(pieces.gradient_of(site), whole.gradient_of(site))


def test_batches_of_one_add_up_the_squares_of_samples(model: Attention, batches: Batches) -> None:
    samples = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(y))]
    expected = plain_loop(model, samples)
    found = estimate_sensitivity(model, samples, score_dtype=torch.float64)
    assert (found.metadata["num_batches"], found.metadata["num_samples"]) == (19, 19)
    assert found.metadata["batch_sizes"] == [1] * 19
    for name, score in found.scores.items():
        squares: torch.Tensor = sum(g[name] ** 2 for g in expected)  # type: ignore[assignment]
        torch.testing.assert_close(score, squares, rtol=1e-8, atol=1e-18)
