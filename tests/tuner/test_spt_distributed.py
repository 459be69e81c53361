"""Gradients stay right where training spreads out: over processes, micro-batches, repeated calls and precisions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dense_reference import dense_weights
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from tuned_models import make_allocation, seeded, trained, tune
from worker_processes import run_workers

from sensitune.allocation import Allocation
from sensitune.sites import outline_model

PROCESSES = 2


class Network(nn.Module):
    """Two layers tuned in different ways, a norm and a head; the middle layer may be called several times."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        self.calls = calls
        self.fc1 = nn.Linear(6, 12)
        self.fc2 = nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.fc1(x))
        for _ in range(self.calls):
            x = x + F.gelu(self.fc2(x))
        return self.head(self.norm(x))


def network(calls: int = 1) -> Network:
    return seeded(lambda: Network(calls), dtype=torch.float64)


def allocation() -> Allocation:
    """LoRA and sparse biases on `fc1`, sparse entries on `fc2`, one vector of the norm whole, the other sparse."""
    sparse = {
        "fc1.bias": torch.tensor([1, 7]),
        "fc2.weight": torch.tensor([0, 3, 15, 27, 99, 143]),
        "norm.bias": torch.tensor([2]),
    }
    vectors = "norm.weight", "fc2.bias"
    return make_allocation(outline_model(network()), modules={"fc1.weight": 2}, vectors=vectors, sparse=sparse)


def tuned_network(calls: int = 1) -> PeftModel:
    return tune(network(calls), allocation(), dropout=0.0, drop_path=0.0)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients that are there, of everything that trains."""
    found = {name: parameter.grad for name, parameter in trained(model).items()}
    return {name: gradient.clone() for name, gradient in found.items()}  # type: ignore[union-attr]  # None fails


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 6, generator=generator, dtype=torch.float64), torch.randint(3, (8,), generator=generator)


def dense_gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    """The same gradients from plain torch: a dense weight for each call, built from the trained values."""
    base = network(model.base_model.model.calls)
    weights = dense_weights(base, model.base_model.site_parameters(), allocation())
    head = model.base_model.model.head.modules_to_save["default"]
    x, y = data()
    weights |= {f"head.{name}": value for name, value in head.named_parameters()}
    loss = F.cross_entropy(torch.func.functional_call(base, weights, (x,)), y)
    leaves = trained(model)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def backward(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    F.cross_entropy(model(x), y).backward()


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_layer_called_several_times_sums_the_gradients_of_its_calls(calls: int) -> None:
    model = tuned_network(calls)
    backward(model, *data())
    torch.testing.assert_close(gradients(model), dense_gradients(model))


def test_gradients_accumulate_over_micro_batches() -> None:
    model = tuned_network()
    x, y = data()
    for part_x, part_y in zip(x.split(2), y.split(2), strict=True):
        (F.cross_entropy(model(part_x), part_y) / 4).backward()
    torch.testing.assert_close(gradients(model), dense_gradients(model))


def test_two_forwards_before_their_backwards_do_not_disturb_each_other() -> None:
    model = tuned_network()
    x, y = data()
    losses = [F.cross_entropy(model(part_x), part_y) / 2 for part_x, part_y in zip(x.split(4), y.split(4), strict=True)]
    for loss in reversed(losses):
        loss.backward()
    torch.testing.assert_close(gradients(model), dense_gradients(model))


def test_autocast_gives_the_gradients_of_full_precision_to_its_own_precision() -> None:
    exact, model = tuned_network(2), tuned_network(2).float()
    backward(exact, *data())
    x, y = data()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x.float())
    assert logits.dtype == torch.bfloat16
    F.cross_entropy(logits.float(), y).backward()
    for name, gradient in gradients(exact).items():
        ours = gradients(model)[name]
        assert ours.dtype == torch.float32
        assert (ours - gradient).norm() <= 0.05 * gradient.norm(), name


def test_the_network_is_tuned_in_every_linear_way() -> None:
    model = tuned_network()
    roles = {role for roles in model.base_model.site_parameters().values() for role in roles}
    assert roles == {"down", "up", "sparse", "whole"}
    assert any("modules_to_save" in name for name in trained(model))


def train_distributed(rank: int, folder: Path) -> None:
    """One of the processes: two steps on its share of the batch under DDP; the first writes what came out."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    model = tuned_network()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
    x, y = data()
    found = {}
    for step in range(2):
        optimizer.zero_grad()
        backward(wrapped, x[rank::PROCESSES], y[rank::PROCESSES])
        found |= {f"{step}.{name}": gradient for name, gradient in gradients(model).items()}
        optimizer.step()
    with wrapped.no_sync():  # accumulation: only the second backward exchanges anything
        optimizer.zero_grad()
        backward(wrapped, x[rank::PROCESSES], y[rank::PROCESSES])
    backward(wrapped, x[rank::PROCESSES], y[rank::PROCESSES])
    found |= {f"2.{name}": gradient / 2 for name, gradient in gradients(model).items()}
    save_file(found, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_get_the_gradients_of_one(tmp_path: Path) -> None:
    run_workers(__file__, tmp_path, count=PROCESSES)
    model = tuned_network()
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
    expected = {}
    for step in range(3):
        optimizer.zero_grad()
        backward(model, *data())
        expected |= {f"{step}.{name}": gradient for name, gradient in gradients(model).items()}
        optimizer.step()
    for rank in range(PROCESSES):
        torch.testing.assert_close(load_file(tmp_path / f"{rank}.safetensors"), expected)


if __name__ == "__main__":
    train_distributed(int(sys.argv[1]), Path(sys.argv[2]))
