"""Processes that share the batches return the scores of one process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from worker_processes import run_workers

from sensitune._processes import Processes
from sensitune.errors import DataError, ModelError, SensituneError
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.sites import Site

PROCESSES = 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.LayerNorm(12), nn.Dropout(0.5), nn.Linear(12, 3))


def batches(count: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    sizes = [4, 4, 3, 5, 2][:count]
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)) for size in sizes
    ]


def with_one_bad_batch() -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = batches()
    made[3][0][0, 0] = float("nan")  # the second process's
    return made


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"score_dtype": torch.bfloat16},
    "micro": {"micro_batch_size": 2},
    "fewer": {"num_batches": 3},
    "one": {"num_batches": 1},
    "alone": {"distributed": False},
    "dropout": {"dropout": True, "seed": 3},
    "gradients": {"keep_gradients": True},
    "by layer": {"by_layer": True, "micro_batch_size": 2},
    "file": {"score_file": "scores.safetensors"},
    # The sums are finished after they are complete: the mean of two finished scores would be another.
    "absolute_gradient_sum": {"criterion": "absolute_gradient_sum", "score_dtype": torch.float64},
}


def work_distributed(rank: int, folder: Path) -> None:
    """One of the processes: all of the cases; every process writes what it got."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    os.chdir(folder)
    for name, options in OPTIONS.items():
        estimate_sensitivity(network(), batches(), **options).save(folder / f"{name}.{rank}.safetensors")
    sentences = []
    for wrong in (with_one_bad_batch(), batches()[rank:], DataLoader(TensorDataset(), sampler=FakeSampler())):
        try:
            estimate_sensitivity(network(), iter(wrong) if isinstance(wrong, list) else wrong)
        except SensituneError as error:
            sentences.append(f"{type(error).__name__}: {error}")
    (folder / f"sentences.{rank}").write_text("\n".join(sentences))
    torch.distributed.destroy_process_group()


class FakeSampler(DistributedSampler[Any]):
    def __init__(self) -> None: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    made = tmp_path_factory.mktemp("processes")
    run_workers(__file__, made, count=PROCESSES)
    return made


def site_of(sensitivity: Sensitivity, parameter: str) -> Site:
    return next(site for site in sensitivity.sites if site.parameter == parameter)


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_return_the_scores_of_one(
    folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = estimate_sensitivity(network(), batches(), **OPTIONS[name])
    tolerance = 2**-7 if name == "bfloat16" else 1e-5
    for rank in range(PROCESSES):
        found = Sensitivity.load(folder / f"{name}.{rank}.safetensors")
        for parameter, score in expected.scores.items():
            assert found.scores[parameter].dtype == score.dtype
            torch.testing.assert_close(found.scores[parameter], score, rtol=tolerance, atol=1e-12)
        for parameter, gradient in (expected.gradients or {}).items():
            torch.testing.assert_close(found.gradient_of(site_of(found, parameter)), gradient, rtol=1e-5, atol=1e-7)
        assert (found.gradients is None) == (expected.gradients is None)
        for key in ("num_batches", "batch_sizes", "num_samples", "losses", "without_gradient"):
            assert found.metadata[key] == pytest.approx(expected.metadata[key], rel=1e-6), key


def test_both_processes_say_what_is_wrong(folder: Path) -> None:
    for rank in range(PROCESSES):
        bad, other, sampled = (folder / f"sentences.{rank}").read_text().splitlines()
        assert bad.startswith("NonFiniteError: The loss of batch 3 (the first is 0) is nan.")
        assert other == "DataError: `batches` must be the same in every process. The processes read 5, 4 of them."
        assert sampled.startswith("DataError: `batches` must be the same in every process; this DataLoader shares them")


def test_a_loader_prepared_by_accelerate_is_refused() -> None:
    prepared = type("DataLoaderShard", (SimpleNamespace,), {"__module__": "accelerate.data_loader"})()
    Processes().check_unshared(prepared)
    with pytest.raises(DataError, match=r"this DataLoaderShard shares them between the 2 processes itself"):
        Processes(0, 2).check_unshared(prepared)


def test_a_wrapped_model_is_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network())
        with pytest.raises(ModelError, match=r"Got a DistributedDataParallel. Give its `module`"):
            estimate_sensitivity(wrapped, batches())
        assert estimate_sensitivity(wrapped.module, batches()).metadata["num_processes"] == 1
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    work_distributed(int(sys.argv[1]), Path(sys.argv[2]))
