"""A tuned model never writes into the base while it computes: threads and forked processes see what they should."""

from __future__ import annotations

import math
import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_properties import assert_same_state, output_of, state_of
from peft import PeftModel, get_peft_model
from timm.layers import StdConv2d
from timm.models.levit import Attention
from torch import nn
from tuned_models import IMAGES, LABELS, add, mixed_allocation, seeded, tiny_vit, trained, tuned_vit

from sensitune.tuner import SptConfig

BATCH, ANSWERS = IMAGES.repeat(8, 1, 1, 1), LABELS.repeat(8)


@contextmanager
def repeating(step: Callable[[], Any]) -> Iterator[Callable[[], int]]:
    """Do `step` again and again in a thread of its own while what is inside runs; yields how often it was done."""
    stop, errors, done = threading.Event(), [], []

    def loop() -> None:
        while not stop.is_set() and not errors:
            try:
                step()
            except BaseException as error:
                errors.append(error)
            done.append(None)

    thread = threading.Thread(target=loop)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns often
    thread.start()
    try:
        yield lambda: len(done)
    finally:
        stop.set()
        thread.join(timeout=60)
        sys.setswitchinterval(interval)
    assert not thread.is_alive()
    if errors:
        raise errors[0]
    assert done


def tuned_convolutions(first: type[nn.Conv2d] = nn.Conv2d) -> PeftModel:
    """Sparse entries in two convolutions, a LoRA on a third."""
    convolutions = first(3, 8, 2, 2, padding=0), nn.GELU(), nn.Conv2d(8, 8, 3, groups=2), nn.GELU(), nn.Conv2d(8, 4, 1)
    model = seeded(lambda: nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(144, 5)))
    sparse = SptConfig(target_modules=["0", "2", "4"], r=0, rank_pattern={"4": 2}, num_sparse=20, init_weights=False)
    return get_peft_model(model, sparse).eval()


class Doubled(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def tuned_linears(layer: type[nn.Linear] = nn.Linear, *, hooked: bool = False, whole: bool = False) -> PeftModel:
    """Two linear layers whose weights are tuned sparsely, or whole."""
    model = seeded(lambda: nn.Sequential(nn.Flatten(), layer(IMAGES[0].numel(), 16), nn.GELU(), layer(16, 5)))
    if hooked:
        for each in model:
            each.register_forward_hook(lambda module, arguments, output: None)
    entries = 10**6 if whole else 12
    return get_peft_model(
        model, SptConfig(target_modules=["1", "3"], r=0, num_sparse=entries, init_weights=False)
    ).eval()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(16, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.rnn(x.flatten(1, 2))[0].mean(1))
        return output


class FusedEncoder(nn.Module):
    """torch's encoder layer, which reads its parts' weights in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.layer(x.flatten(1, 2)).mean(1))
        return output


class KeepsBiases(nn.Module):
    """timm's LeViT attention, which keeps its biases in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = Attention(16, 4, 2, resolution=(6, 8), use_conv=False), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.attention(x.flatten(1, 2)).mean(1))
        return output


def tuned_parameters(make: Callable[[], nn.Module], *parameters: str) -> PeftModel:
    """Parameters tuned whole."""
    model = seeded(make)
    shapes = {name: list(model.get_parameter(name).shape) for name in parameters}
    plan = {
        name: {"parameter": name, "form": "whole", "size": math.prod(shape), "shape": shape}
        for name, shape in shapes.items()
    }
    modules = [name.rpartition(".")[0] for name in parameters]
    return get_peft_model(model, SptConfig(site_plan=plan, target_modules=modules, init_weights=False)).eval()


MODELS = {
    "vit": tuned_vit,
    "a recurrent network": lambda: tuned_parameters(Recurrent, "rnn.weight_hh_l0", "rnn.bias_ih_l0"),
    "a fused encoder": lambda: tuned_parameters(
        FusedEncoder, "layer.linear1.weight", "layer.self_attn.out_proj.weight"
    ),
    "attention that keeps its biases": lambda: tuned_parameters(KeepsBiases, "attention.attention_biases"),
    "whole weights": lambda: tuned_linears(whole=True),
    "hooked layers": lambda: tuned_linears(hooked=True),
    "linear layers with a forward of their own": lambda: tuned_linears(Doubled),
    "convolutions": tuned_convolutions,
    "a convolution with a forward of its own": lambda: tuned_convolutions(StdConv2d),
}


def frozen(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}


def predict(tuned: PeftModel) -> torch.Tensor:
    with torch.no_grad():
        return output_of(tuned, BATCH)


def training(tuned: PeftModel) -> Callable[[], None]:
    tuned.train()
    optimizer = torch.optim.SGD(trained(tuned).values(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(tuned(BATCH), ANSWERS).backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("doing", ["predicts", "trains"])
@pytest.mark.parametrize("adapters", [1, 2])
def test_another_thread_always_reads_the_bases_weights_while_the_model(doing: str, adapters: int) -> None:
    tuned = tuned_vit(modules_to_save=None, dropout=0.0, drop_path=0.0)
    if adapters == 2:
        add(tuned, mixed_allocation(tiny_vit(), turn=1), modules_to_save=None)
        tuned.base_model.set_adapter(["default", "other"])
    weights = frozen(tuned)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    wrong = set()
    with repeating(training(tuned) if doing == "trains" else lambda: predict(tuned)) as done:
        while done() < 40:
            wrong |= {name for name, weight in weights.items() if not torch.equal(weight, before[name])}
    assert not wrong


@pytest.mark.parametrize("name", MODELS)
def test_the_stored_weights_of_any_model_are_the_bases_while_another_thread_predicts(name: str) -> None:
    tuned = MODELS[name]()
    before, wrong = state_of(tuned), set()
    with repeating(lambda: predict(tuned)) as done:
        while done() < 20:
            now = tuned.state_dict()  # as a thread that saves checkpoints reads it
            wrong |= {key for key, value in before.items() if not torch.equal(now[key], value)}
    assert not wrong


@pytest.mark.parametrize("name", MODELS)
def test_two_threads_predict_the_same(name: str) -> None:
    tuned = MODELS[name]()
    expected = predict(tuned)
    with repeating(lambda: predict(tuned)) as done:
        while done() < 40:
            assert torch.equal(predict(tuned), expected)
    assert torch.equal(predict(tuned), expected)


@pytest.mark.parametrize("name", MODELS)
def test_merging_and_unmerging_while_another_thread_predicts_leaves_everything_bit_equal(name: str) -> None:
    tuned = MODELS[name]()
    before, expected = state_of(tuned), predict(tuned)
    with repeating(lambda: predict(tuned)) as done:
        while done() < 40:
            tuned.merge_adapter()
            tuned.unmerge_adapter()
    assert_same_state(before, tuned)
    assert torch.equal(predict(tuned), expected)


def answer(tuned: PeftModel, connection: Connection) -> None:
    connection.send(predict(tuned).numpy())  # as numbers: a tensor would travel through shared memory


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # that is what is tested
def test_a_process_forked_while_another_thread_predicts_gives_the_parents_values() -> None:
    tuned = tuned_vit()
    expected = predict(tuned)
    context = multiprocessing.get_context("fork")
    with repeating(lambda: predict(tuned)):
        for _ in range(5):
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=answer, args=(tuned, theirs), daemon=True)
            child.start()
            try:
                assert ours.poll(30), "The forked process hangs."
                torch.testing.assert_close(torch.from_numpy(ours.recv()), expected, rtol=0.0, atol=0.0)
            finally:
                child.kill()
                child.join()
