"""Criteria that are finished after the last batch, against plain loops in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_sites import make_site, make_slices
from torch import nn
from torch.nn import functional

from sensitune.errors import DataError
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.sensitivity._criteria import over_site_mean, signal_to_noise
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


def ratio(gradients: Gradients, site: Site) -> torch.Tensor:
    squares = sum(site.of(g[site.parameter]) ** 2 for g in gradients)
    return absolute_gradient_sum(gradients, site) ** 2 / squares


def over_the_mean(gradients: Gradients, site: Site) -> torch.Tensor:
    squares: torch.Tensor = sum(site.of(g[site.parameter]) ** 2 for g in gradients)  # type: ignore[assignment]
    return squares / squares.mean()


REFERENCES: dict[str, Callable[[Gradients, Site], torch.Tensor]] = {
    "absolute_gradient_sum": absolute_gradient_sum,
    "signal_to_noise": ratio,
    "normalised_squared_gradient": over_the_mean,
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


def test_batches_that_agree_have_their_number_as_signal_to_noise(model: Attention, batches: Batches) -> None:
    found = estimate_sensitivity(model, batches[:1] * 4, criterion="signal_to_noise")
    for site in without_keys_bias(found):
        torch.testing.assert_close(found.score_of(site), torch.full(site.shape, 4.0))


@given(st.lists(st.floats(-(2.0**50), 2.0**50, width=32), min_size=1, max_size=8))
def test_signal_to_noise_lies_between_zero_and_the_number_of_batches(gradients: list[float]) -> None:
    values = torch.tensor(gradients)
    sums = [{"w": values.sum().reshape(1)}, {"w": values.square().sum().reshape(1)}]
    score = float(signal_to_noise(sums, ())["w"])
    assert 0 <= score <= len(gradients) * (1 + 1e-5)


def test_signal_to_noise_of_what_has_no_gradient_is_zero(model: Attention, batches: Batches) -> None:
    nn.init.zeros_(model.proj.weight)  # so nothing reaches the projections before it
    found = estimate_sensitivity(model, batches, criterion="signal_to_noise")
    assert not found.scores["qkv.weight"].any()
    assert bool(found.scores["proj.weight"].any())


def test_signal_to_noise_needs_two_batches(model: Attention, batches: Batches) -> None:
    sentence = "The criterion 'signal_to_noise' compares batches and needs at least 2. Got 1. Give more batches, or"
    with pytest.raises(DataError, match=sentence):
        estimate_sensitivity(model, batches, criterion="signal_to_noise", num_batches=1)


def test_a_fused_projection_is_normalised_as_its_parts_are() -> None:
    parts = {name: torch.rand(2, 3) * scale for name, scale in (("q", 1.0), ("k", 1e-2), ("v", 30.0))}
    apart = [make_site(name, (2, 3)) for name in parts]
    fused = make_slices("qkv", "qkv", (2, 3))
    together = over_site_mean([{"qkv": torch.cat(list(parts.values()))}], fused)["qkv"]
    expected = over_site_mean([{name: part.clone() for name, part in parts.items()}], apart)
    assert torch.equal(together, torch.cat(list(expected.values())))
    assert [float(score.mean()) for score in expected.values()] == pytest.approx([1.0, 1.0, 1.0])


def test_a_site_with_nothing_but_rounding_is_not_blown_up(model: Attention, batches: Batches) -> None:
    """A softmax ignores a shift of the keys, so the true gradient of their bias is zero."""
    single = [(x.float(), y) for x, y in batches]
    found = estimate_sensitivity(model.float(), single, criterion="normalised_squared_gradient")
    bias = next(site for site in found.sites if site.id == "qkv.bias[k]")
    assert 0 < float(found.score_of(bias).max()) < 1e-5
    for site in without_keys_bias(found):
        assert float(found.score_of(site).mean()) == pytest.approx(1.0)


def test_sites_without_any_gradient_keep_a_score_of_zero() -> None:
    sites = [make_site(name, (3,)) for name in ("used", "unused")]
    scores = over_site_mean([{"used": torch.rand(3), "unused": torch.zeros(3)}], sites)
    assert float(scores["used"].mean()) == pytest.approx(1.0)
    assert not scores["unused"].any()
