"""Two processes score and train a base in few bits as one does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_models import EVERY_KIND, MAKERS, batches, nf4, same_bytes, small, stored_bytes
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from tuned_models import mixed_allocation, trained, tune
from worker_processes import run_workers

from sensitune.sensitivity import estimate_sensitivity

PROCESSES = 2
KINDS = [name for name in MAKERS if find_spec("torchao" if name.startswith("torchao") else "bitsandbytes")]


def scores(kind: str) -> dict[str, torch.Tensor]:
    found = estimate_sensitivity(MAKERS[kind](small()), batches(4))
    return {site.name: found.score_of(site).clone() for site in found.sites}


def steps(model: nn.Module, tuned: nn.Module, share: slice) -> dict[str, torch.Tensor]:
    """The gradients of two steps on a share of the batch."""
    optimizer = torch.optim.SGD(trained(tuned).values(), lr=0.1)
    x, y = batches(1)[0]
    found = {}
    for step in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(x[share]), y[share]).backward()
        for name, parameter in trained(tuned).items():
            assert parameter.grad is not None, name
            gradient = parameter.grad
            whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            found[f"{step}.{name}"] = whole.clone()
        optimizer.step()
    return found


def tuned_base(base: nn.Module) -> Any:
    return tune(base, mixed_allocation(small(), "lora", 0), dropout=0.0, drop_path=0.0).train()


def under_ddp(kind: str, share: slice) -> dict[str, torch.Tensor]:
    base = MAKERS[kind](small())
    before = stored_bytes(base)
    tuned = tuned_base(base)
    # DDP's first act is to send every tensor from the first process to the others, which torchao's tensors cannot.
    model = nn.parallel.DistributedDataParallel(tuned, init_sync=not kind.startswith("torchao"))
    found = steps(model, tuned, share)
    after = tuned.unload().state_dict()
    frozen = [name for name in before if not name.startswith("head.")]
    assert same_bytes({name: before[name] for name in frozen}, {name: after[name] for name in frozen}), kind
    return found


def under_fsdp(share: slice) -> dict[str, torch.Tensor]:
    tuned = tuned_base(nf4(small()))
    for block in tuned.base_model.model.blocks:
        fully_shard(block)
    fully_shard(tuned)
    return steps(tuned, tuned, share)


def work(rank: int, folder: Path) -> None:
    """One of the processes: every kind; it writes its scores and gradients."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    for kind in KINDS:
        save_file(scores(kind), folder / f"scores.{kind}.{rank}.safetensors")
        found = under_ddp(kind, slice(rank, None, PROCESSES))
        save_file(found, folder / f"gradients.{kind}.{rank}.safetensors")
    if "nf4" in KINDS:
        save_file(under_fsdp(slice(rank, None, PROCESSES)), folder / f"sharded.nf4.{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    made = tmp_path_factory.mktemp("processes")
    run_workers(__file__, made, count=PROCESSES)
    return made


def _near(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], bound: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float((found[name] - value).norm()) <= bound * float(value.norm()), name


@EVERY_KIND
def test_the_scores_of_two_processes_are_those_of_one(quantise: Callable[..., nn.Module], folder: Path) -> None:
    wanted = scores(quantise.__name__)
    for rank in range(PROCESSES):
        _near(load_file(folder / f"scores.{quantise.__name__}.{rank}.safetensors"), wanted, 1e-5)


@EVERY_KIND
def test_the_gradients_under_ddp_are_those_of_one_process(quantise: Callable[..., nn.Module], folder: Path) -> None:
    tuned = tuned_base(quantise(small()))
    wanted = steps(tuned, tuned, slice(None))
    for rank in range(PROCESSES):
        _near(load_file(folder / f"gradients.{quantise.__name__}.{rank}.safetensors"), wanted, 1e-5)


@pytest.mark.skipif("nf4" not in KINDS, reason="needs bitsandbytes: the extra `quantised`")
def test_the_gradients_of_a_base_in_nf4_under_fsdp2_are_those_of_one_process(folder: Path) -> None:
    tuned = tuned_base(nf4(small()))
    wanted = steps(tuned, tuned, slice(None))
    for rank in range(PROCESSES):
        _near(load_file(folder / f"sharded.nf4.{rank}.safetensors"), wanted, 1e-5)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
