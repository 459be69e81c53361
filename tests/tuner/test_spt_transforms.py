"""A whole tuned model under torch's transforms and tracers: as the same model with its changes added densely."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dense_reference import assert_gradients_follow, dense_weights, write_dense
from peft import PeftModel, get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from tuned_models import IMAGES, LABELS, gradients_of, mixed_allocation, seeded, tiny_vit, trained, tune, tuned_vit

from sensitune.tuner import SptConfig

# torch's own forward mode and tracer say that they are deprecated; timm checks sizes while it is traced.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")

Values = dict[str, torch.Tensor]
Loss = Callable[[Values, torch.Tensor, torch.Tensor], torch.Tensor]


X, Y = IMAGES.double(), LABELS


def vit() -> VisionTransformer:
    """In float64, with an attention of plain products: torch's fused one has no second derivative."""
    model = tiny_vit(depth=2, dtype=torch.float64)
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def losses(turn: int = 0) -> tuple[PeftModel, Values, Loss, Loss]:
    """A tuned model, its trained values by name, and its loss in them: by the model itself and by dense weights."""
    base = vit()
    allocation = mixed_allocation(base, turn=turn)
    tuned = tune(base, allocation)
    names = {id(parameter): name for name, parameter in trained(tuned).items()}
    sites = {
        site: {role: names[id(parameter)] for role, parameter in roles.items()}
        for site, roles in tuned.base_model.site_parameters().items()
    }
    head = {
        own: names[id(value)] for own, value in tuned.base_model.model.head.modules_to_save.default.named_parameters()
    }
    plain = vit()

    def ours(values: Values, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(tuned, values, (x,)), y)

    def dense(values: Values, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        by_site = {site: {role: values[name] for role, name in roles.items()} for site, roles in sites.items()}
        weights = dense_weights(plain, by_site, allocation) | {
            f"head.{own}": values[name] for own, name in head.items()
        }
        return F.cross_entropy(torch.func.functional_call(plain, weights, (x,)), y)

    return tuned, {name: value.detach() for name, value in trained(tuned).items()}, ours, dense


@pytest.mark.parametrize("turn", range(3))
def test_functional_gradients_equal_the_dense_models(turn: int) -> None:
    _, values, ours, dense = losses(turn)
    torch.testing.assert_close(torch.func.grad(ours)(values, X, Y), torch.func.grad(dense)(values, X, Y))


def test_gradients_of_single_samples_equal_the_dense_models() -> None:
    _, values, ours, dense = losses()
    per_sample = [torch.func.vmap(torch.func.grad(loss), (None, 0, 0)) for loss in (ours, dense)]
    found, expected = (each(values, X[:, None], Y[:, None]) for each in per_sample)
    torch.testing.assert_close(found, expected)


def test_directional_derivatives_equal_the_dense_models() -> None:
    _, values, ours, dense = losses()
    tangents = {name: torch.randn_like(value) for name, value in values.items()}
    found, expected = (
        torch.func.jvp(lambda changed, loss=loss: loss(changed, X, Y), (values,), (tangents,)) for loss in (ours, dense)
    )
    torch.testing.assert_close(found, expected)


def test_the_hessian_of_each_kind_of_trained_value_equals_the_dense_models() -> None:
    _, values, ours, dense = losses()
    kinds = ("spt_down", "spt_up", "spt_sparse", "spt_whole")
    chosen = {next(name for name in values if kind in name and values[name].numel() < 60) for kind in kinds}
    inside = {name: values[name] for name in chosen}
    found, expected = (
        torch.func.hessian(lambda part, loss=loss: loss(values | part, X[:2], Y[:2]))(inside) for loss in (ours, dense)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("turn", range(3))
def test_second_derivatives_through_autograd_equal_the_dense_models(turn: int) -> None:
    tuned, values, _, dense = losses(turn)
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    directions = [torch.randn_like(value) for value in values.values()]
    found, expected = (
        product_with_hessian(loss, parameters, directions)
        for loss, parameters in (
            (F.cross_entropy(tuned(X), Y), list(trained(tuned).values())),
            (dense(leaves, X, Y), list(leaves.values())),
        )
    )
    torch.testing.assert_close(found, expected)


def product_with_hessian(
    loss: torch.Tensor, parameters: list[torch.Tensor], directions: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    slope = sum((gradient * each).sum() for gradient, each in zip(gradients, directions, strict=True))
    return torch.autograd.grad(slope, parameters)


def test_a_gradient_penalty_on_the_input_trains_as_in_the_dense_model() -> None:
    base = vit()
    allocation = mixed_allocation(base)
    tuned, plain = tune(base, allocation), vit().requires_grad_(True)
    write_dense(plain, tuned, allocation)
    for model in (tuned, plain):
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(x), Y), x, create_graph=True)
        slope.square().sum().backward()
    assert_gradients_follow(tuned, plain, allocation)


@pytest.mark.parametrize("samples", ["together", "apart"])
def test_a_first_forward_inside_a_transform_leaves_a_model_that_trains_and_is_copied(samples: str) -> None:
    tuned, values, ours, _ = losses()
    expected = torch.func.grad(ours)(values, X, Y)
    if samples == "apart":
        tuned = losses()[0]
        torch.func.vmap(lambda x: torch.func.functional_call(tuned, values, (x,)))(X[:, None])
    for model in (tuned, copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        torch.testing.assert_close(gradients_of(model, lambda one=model: F.cross_entropy(one(X), Y)), expected)


@pytest.mark.parametrize("structured", ["lora", "adapter"])
@pytest.mark.parametrize("seen_before", [False, True])
def test_a_traced_model_is_saved_and_gives_the_same_output(tmp_path: Path, structured: str, seen_before: bool) -> None:
    tuned = tuned_vit(structured)
    if seen_before:
        tuned(IMAGES)
    with torch.no_grad():
        torch.jit.trace(tuned, IMAGES).save(str(tmp_path / "model.pt"))
        others = IMAGES.flip(0) * 2
        torch.testing.assert_close(torch.jit.load(str(tmp_path / "model.pt"))(others), tuned(others))


class Reading(nn.Module):
    """A convolution with a LoRA and one with entries; an attention whose projections are read, never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 6, 1)
        self.read, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.second(F.gelu(self.first(x)))).flatten(2).mT
        return self.head(F.linear(x, self.read.weight, self.read.bias).tanh().mean(1) @ self.read.weight)


def test_convolutions_and_weights_that_are_read_are_transformed_like_the_merged_model() -> None:
    model = seeded(Reading, dtype=torch.float64)
    config = SptConfig(
        target_modules=["first", "second", "read"], r=2, rank_pattern={"second": 0}, num_sparse=5, init_weights=False
    )
    tuned = get_peft_model(model, config).eval()
    merged = copy.deepcopy(tuned).merge_and_unload()

    def slope(one: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        return torch.func.grad(lambda x: F.cross_entropy(one(x[None]), Y[:1]))

    for transformed in (
        lambda one: torch.func.vmap(slope(one))(X),
        lambda one: torch.func.jvp(one, (X,), (X.flip(0),)),
        lambda one: torch.func.jvp(slope(one), (X[0],), (X[1],)),
    ):
        torch.testing.assert_close(transformed(tuned), transformed(merged))
    values = {name: value.detach() for name, value in trained(tuned).items()}
    per_sample = torch.func.vmap(
        torch.func.grad(lambda values, x: torch.func.functional_call(tuned, values, (x[None],)).square().sum()),
        (None, 0),
    )(values, X)
    for index, x in enumerate(X):
        expected = gradients_of(tuned, lambda x=x: tuned(x[None]).square().sum())
        torch.testing.assert_close({name: each[index] for name, each in per_sample.items()}, expected)
