"""`compute_lora_start` gives the singular vectors that keep most of the gradient, scaled as the usual start is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from made_sites import make_site
from torch import nn

from sensitune.allocation import Allocation, compute_lora_start, uniform_allocation
from sensitune.errors import AllocationMismatchError, ArgumentError, NonFiniteError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline

Make = Callable[..., ModelOutline]


def sensitivity_of(outline: ModelOutline, seed: int = 0) -> Sensitivity:
    generator = torch.Generator().manual_seed(seed)
    gradients = {site.id: torch.randn(site.shape, generator=generator, dtype=torch.float64) for site in outline.sites}
    scores = {name: gradient.square() for name, gradient in gradients.items()}
    return Sensitivity(scores, outline, {}, gradients=gradients)


def uniform(outline: ModelOutline, rank: int) -> Allocation:
    return uniform_allocation(outline, rank=rank)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_they_keep_as_much_of_the_gradient_as_its_largest_singular_values(
    make_outline: Make, shape: tuple[int, int], rank: int
) -> None:
    outline = make_outline([shape])
    sensitivity = sensitivity_of(outline)
    start = compute_lora_start(sensitivity, uniform(outline, rank))["blocks.0.matrix"]
    gradient = sensitivity.gradients["blocks.0.matrix"]  # type: ignore[index]
    assert start.shape == (rank, shape[1])
    torch.testing.assert_close(start @ start.t(), torch.eye(rank, dtype=torch.float64) / 3)
    kept = gradient @ start.t() @ start
    singular = torch.linalg.svdvals(gradient)[:rank]
    torch.testing.assert_close(kept.norm() * 3, singular.norm())


def test_their_size_is_that_of_kaiming_uniform_values(make_outline: Make) -> None:
    outline = make_outline([(40, 300)])
    start = compute_lora_start(sensitivity_of(outline), uniform(outline, 8))["blocks.0.matrix"]
    usual = torch.stack([nn.init.kaiming_uniform_(torch.empty(8, 300), a=5**0.5) for _ in range(200)])
    assert float(start.square().sum()) == pytest.approx(8 / 3)
    assert float(usual.square().sum((1, 2)).mean()) == pytest.approx(8 / 3, rel=0.01)


def test_a_rank_above_the_gradients_is_completed_by_orthogonal_rows(make_outline: Make) -> None:
    outline = make_outline([(2, 9), (9, 4)])
    sensitivity = sensitivity_of(outline)
    sensitivity.gradients["blocks.1.matrix"].zero_()  # type: ignore[index]
    start = compute_lora_start(sensitivity, uniform(outline, 4))
    for name, width in (("blocks.0.matrix", 9), ("blocks.1.matrix", 4)):
        assert start[name].shape == (4, width)
        gram = start[name] @ start[name].t()
        torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64) / 3)


def test_every_site_gets_a_start_of_its_own_rank(make_outline: Make) -> None:
    outline = make_outline([(6, 9), (9, 6), (5,)])
    allocation = replace(uniform(outline, 2), structured={"blocks.0.matrix": 2, "blocks.1.matrix": 5})
    start = compute_lora_start(sensitivity_of(outline), allocation)
    assert {name: tuple(one.shape) for name, one in start.items()} == {
        "blocks.0.matrix": (2, 9),
        "blocks.1.matrix": (5, 6),
    }


def test_they_read_the_input_however_the_weight_is_stored() -> None:
    shapes = {"linear": (5, 8), "conv1d": (8, 5), "pointwise": (5, 8, 1, 1)}
    sites = tuple(make_site(name, shape, transposed=name == "conv1d") for name, shape in shapes.items())
    outline = ModelOutline(sites, ("head",), 0, {}, {}, 120)
    gradient = torch.randn(5, 8, dtype=torch.float64)
    gradients = {"linear": gradient, "conv1d": gradient.t().contiguous(), "pointwise": gradient[..., None, None]}
    sensitivity = Sensitivity({name: one.abs() for name, one in gradients.items()}, outline, {}, gradients=gradients)
    start = compute_lora_start(sensitivity, uniform(outline, 2))
    for name in shapes:
        assert start[name].shape == (2, 8)
        same = start["linear"].t() @ start["linear"]
        torch.testing.assert_close(start[name].t() @ start[name], same)


def test_an_allocation_without_modules_needs_none(make_outline: Make) -> None:
    outline = make_outline([(6, 9)])
    assert compute_lora_start(sensitivity_of(outline), uniform_allocation(outline, structured=None)) == {}


def test_adapters_have_no_such_start(make_outline: Make) -> None:
    outline = make_outline([(6, 9)])
    with pytest.raises(ArgumentError, match="Only a LoRA can start along the gradient"):
        compute_lora_start(sensitivity_of(outline), uniform_allocation(outline, structured="adapter", rank=2))


def test_more_directions_than_inputs_are_refused(make_outline: Make) -> None:
    outline = make_outline([(9, 6)])
    with pytest.raises(ArgumentError, match=r"has rank 7, but there are only 6 directions in its input"):
        compute_lora_start(sensitivity_of(outline), uniform(outline, 7))


def test_an_allocation_of_another_model_is_refused(make_outline: Make) -> None:
    with pytest.raises(AllocationMismatchError, match=r"has no site `blocks.0.matrix` of shape \[6, 9\]"):
        compute_lora_start(sensitivity_of(make_outline([(9, 6)])), uniform(make_outline([(6, 9)]), 2))


def test_a_gradient_that_is_not_finite_gives_no_start(make_outline: Make) -> None:
    outline = make_outline([(6, 9)])
    sensitivity = sensitivity_of(outline)
    sensitivity.gradients["blocks.0.matrix"][0, 0] = float("inf")  # type: ignore[index]
    with pytest.raises(NonFiniteError, match=r"A gradient of `blocks.0.matrix` is not a finite number"):
        compute_lora_start(sensitivity, uniform(outline, 2))


def test_scores_alone_give_no_start(make_outline: Make) -> None:
    outline = make_outline([(6, 9)])
    with pytest.raises(ArgumentError, match="keep_gradients=True"):
        compute_lora_start(Sensitivity({"blocks.0.matrix": torch.ones(6, 9)}, outline, {}), uniform(outline, 2))
