"""The pass gives the model back bit for bit, whatever happens in it."""

from __future__ import annotations

import copy
import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sensitune.sensitivity import estimate_sensitivity


class Stateful(nn.Module):
    """Everything that a careless pass would change: dropout, buffers, a counter, frozen parts, gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        torch.rand(1)
        logits: torch.Tensor = self.fc2(self.drop(self.norm(self.fc1(x)).relu()))
        return logits


@pytest.fixture
def model() -> Stateful:
    model = Stateful()
    model.norm.eval()
    model.fc1.bias.requires_grad_(False)
    model.fc1.weight.grad = torch.ones(8, 4)
    return model


def noisy_batches(num: int = 3) -> Any:
    for _ in range(num):
        random.random()
        np.random.rand()
        yield torch.randn(5, 4), torch.randint(3, (5,))


def picture(model: nn.Module) -> dict[str, Any]:
    parameters = dict(model.named_parameters())
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "grad": {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()},
        "identity": {name: (id(p), id(p.grad) if p.grad is not None else None) for name, p in parameters.items()},
        "buffers": {name: id(buffer) for name, buffer in model.named_buffers()},
        "requires_grad": {name: p.requires_grad for name, p in parameters.items()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: len(p._post_accumulate_grad_hooks or ()) for name, p in parameters.items()},  # type: ignore[attr-defined]
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()),
    }


def assert_same(before: Any, after: Any) -> None:
    if isinstance(before, dict):
        assert before.keys() == after.keys()
        for name in before:
            assert_same(before[name], after[name])
    elif isinstance(before, (tuple, list)):
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    elif isinstance(before, (torch.Tensor, np.ndarray)):
        assert bool((before == after).all())
    else:
        assert before == after


def test_a_pass_changes_nothing(model: Stateful) -> None:
    before = picture(model)
    estimate_sensitivity(model, noisy_batches())
    assert_same(before, picture(model))


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_a_failure_half_way_changes_nothing(model: Stateful, micro_batch_size: int | None) -> None:
    before = picture(model)
    calls = []

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = functional.cross_entropy(model(batch[0]), batch[1])
        calls.append(loss)
        if len(calls) == 3:
            raise RuntimeError("the loss broke")
        return loss

    with pytest.raises(RuntimeError, match="the loss broke"):
        estimate_sensitivity(model, noisy_batches(), loss_fn=loss_fn, micro_batch_size=micro_batch_size)
    assert_same(before, picture(model))


def test_a_buffer_that_the_model_replaces_is_put_back(model: Stateful) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        model.calls = model.calls + 1
        logits: torch.Tensor = model.fc2(model.fc1(x))
        return logits

    model.forward = forward  # type: ignore[method-assign]
    before = picture(model)
    estimate_sensitivity(model, noisy_batches())
    assert_same(before, picture(model))


def test_modules_are_set_to_eval_without_calling_their_train_method(model: Stateful) -> None:
    def refuse(mode: bool = True) -> nn.Module:
        raise AssertionError("train() may do more than set flags")

    model.drop.train = refuse  # type: ignore[method-assign]
    estimate_sensitivity(model, noisy_batches())


def test_scores_do_not_depend_on_the_flags_the_model_came_with(model: Stateful) -> None:
    batches = list(noisy_batches())
    first = estimate_sensitivity(model, batches)
    model.eval().requires_grad_(False)
    second = estimate_sensitivity(model, batches)
    for name, score in first.scores.items():
        assert torch.equal(score, second.scores[name])


def test_the_model_can_still_be_copied_and_saved(model: Stateful) -> None:
    estimate_sensitivity(model, noisy_batches())
    copy.deepcopy(model)
    torch.save(model, io.BytesIO())


def test_hooks_of_the_first_forward_are_gone_with_what_is_noted_of_them() -> None:
    class Hooked(Stateful):
        """As transformers captures hidden states: hooks that are installed once, and a note that they are there."""

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            if not hasattr(self, "hooks_installed"):
                self.hooks_installed = True
                next(self.children()).register_forward_hook(lambda *_: calls.append(1))
            result: torch.Tensor = super().forward(*inputs)
            return result

    calls: list[int] = []
    hooked = Hooked()
    counts = []
    for _ in range(3):
        calls.clear()
        estimate_sensitivity(hooked, noisy_batches())
        counts.append(len(calls))
    assert counts == [counts[0]] * 3
    assert not hasattr(hooked, "hooks_installed")
    assert not next(hooked.children())._forward_hooks


@pytest.mark.gpu
def test_a_pass_on_a_gpu_changes_nothing_and_takes_batches_from_the_cpu(model: Stateful) -> None:
    batches = list(noisy_batches())
    expected = estimate_sensitivity(model, batches)
    model.cuda()
    before, state = picture(model), torch.cuda.get_rng_state()
    found = estimate_sensitivity(model, batches)
    assert_same(before, picture(model))
    assert torch.equal(state, torch.cuda.get_rng_state())
    for name, score in expected.scores.items():
        torch.testing.assert_close(found.scores[name], score, rtol=1e-3, atol=1e-7)
