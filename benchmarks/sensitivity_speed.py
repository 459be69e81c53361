"""Time and memory of `estimate_sensitivity` against the same number of plain forward and backward passes.

ViT-B/16 at 224 px, float32, head of 100, random weights (the cost does not depend on them). The two take turns, so that
every ratio is between neighbours in time. Peak memory is that of a fresh process for each (on a GPU: of the allocator).

    python benchmarks/sensitivity_speed.py --batch-size 8 --repeats 5 --output benchmarks/results/sensitivity_speed.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn import functional

from sensitune.sensitivity import estimate_sensitivity
from sensitune.sites import outline_model

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def setting(arguments: argparse.Namespace) -> tuple[nn.Module, Batches]:
    """The model and the batches, on the device."""
    torch.manual_seed(0)
    model = timm.create_model(arguments.model, num_classes=100).eval().to(arguments.device)
    size = arguments.batch_size
    batches = [
        (torch.randn(size, 3, 224, 224, device=arguments.device), torch.randint(100, (size,), device=arguments.device))
        for _ in range(arguments.num_batches)
    ]
    return model, batches


def plain_passes(model: nn.Module, batches: Batches) -> None:
    """What the scores cost at least: gradients of the same parameters, thrown away."""
    ranked = {site.parameter for site in outline_model(model).sites}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in ranked)
    for images, labels in batches:
        functional.cross_entropy(model(images), labels).backward()
        model.zero_grad()


def sensitivity(model: nn.Module, batches: Batches) -> None:
    """The pass itself."""
    estimate_sensitivity(model, batches)


WAYS: dict[str, Callable[[nn.Module, Batches], None]] = {"plain passes": plain_passes, "sensitivity": sensitivity}


def seconds(way: str, model: nn.Module, batches: Batches) -> float:
    """Wall time of all batches."""
    start = time.perf_counter()
    WAYS[way](model, batches)
    if batches[0][0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mib_above_the_model(way: str, arguments: argparse.Namespace) -> float:
    """Growth of the peak during the pass; run in a process of its own."""
    model, batches = setting(arguments)
    with torch.no_grad():
        model(batches[0][0][:1])  # what the libraries allocate once
    if arguments.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        WAYS[way](model, batches)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    WAYS[way](model, batches)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Measure, print, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-batches", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = dict(
            zip(WAYS, pool.starmap(peak_mib_above_the_model, [(way, arguments) for way in WAYS], 1), strict=True)
        )
    model, batches = setting(arguments)
    seconds("plain passes", model, batches[:1])  # warm up
    taken = [{way: seconds(way, model, batches) for way in WAYS} for _ in range(arguments.repeats)]
    ratios = [one["sensitivity"] / one["plain passes"] for one in taken]
    cuda = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else None
    report = {
        "command": " ".join(["python", *sys.argv]),
        "model": arguments.model,
        "hardware": cuda
        or f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "date": datetime.now(tz=UTC).date().isoformat(),
        "seconds": {way: round(statistics.median(one[way] for one in taken), 3) for way in WAYS},
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        },
        "peak_mib_above_the_model": {way: round(peak) for way, peak in peaks.items()},
        "scores_mib": round(sum(site.numel for site in outline_model(model).sites) * 4 / 2**20),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
