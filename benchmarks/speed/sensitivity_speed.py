"""Time and memory of `estimate_sensitivity` against the same number of plain forward and backward passes.

ViT-B/16 at 224 px, float32, head of 100, random weights (the cost does not depend on them). The two take turns, so that
every ratio is between neighbours in time. Peak memory is that of a fresh process for each (on a GPU: of the allocator).

    python benchmarks/speed/sensitivity_speed.py --output benchmarks/results/sensitivity_speed.json
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from functools import partial

import torch
from measuring import interleaved, parser, peak_resident_mib, prepare, publish, ratio, spread
from methods import CLASSES, predict, vit
from torch import nn
from torch.nn import functional

from sensitune.sensitivity import estimate_sensitivity
from sensitune.sites import outline_model

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def setting(arguments: argparse.Namespace) -> tuple[nn.Module, Batches]:
    """The model and the batches, on the device."""
    size, device = arguments.batch_size, arguments.device
    batches = [
        (torch.randn(size, 3, 224, 224, device=device), torch.randint(CLASSES, (size,), device=device))
        for _ in range(arguments.num_batches)
    ]
    return vit(arguments.model).eval().to(device), batches


def plain_passes(model: nn.Module, batches: Batches) -> None:
    """What the scores cost at least: gradients of the same parameters, thrown away."""
    ranked = {site.parameter for site in outline_model(model).sites}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in ranked)
    for images, labels in batches:
        functional.cross_entropy(model(images), labels).backward()
        model.zero_grad()
    finish(images)


def sensitivity(model: nn.Module, batches: Batches, **options: object) -> None:
    """The pass itself."""
    estimate_sensitivity(model, batches, **options)
    finish(batches[0][0])


def finish(tensor: torch.Tensor) -> None:
    """Wait for the device."""
    if tensor.is_cuda:
        torch.cuda.synchronize()


PLAIN, FLOAT32 = "plain passes", "sensitivity"
WAYS: dict[str, Callable[[nn.Module, Batches], None]] = {
    PLAIN: plain_passes,
    FLOAT32: sensitivity,
    "sensitivity, bfloat16 scores": partial(sensitivity, score_dtype=torch.bfloat16),
    "sensitivity, scores on the CPU": partial(sensitivity, score_device="cpu"),
}


def peak_mib_above_the_model(way: str, arguments: argparse.Namespace) -> float:
    """Growth of the peak during the pass; run in a process of its own."""
    prepare(arguments)
    model, batches = setting(arguments)
    predict(model, batches[0][0][:1])  # what the libraries allocate once
    if arguments.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        WAYS[way](model, batches)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = peak_resident_mib()
    WAYS[way](model, batches)
    return peak_resident_mib() - before


def main() -> None:
    """Measure and report."""
    options = parser(__doc__, repeats=3)
    options.add_argument("--model", default="vit_base_patch16_224")
    options.add_argument("--device", default="cpu")
    options.add_argument("--batch-size", type=int, default=8)
    options.add_argument("--num-batches", type=int, default=4)
    arguments = options.parse_args()
    clock = prepare(arguments)
    on_gpu = arguments.device.startswith("cuda")
    ways = [way for way in WAYS if on_gpu or not way.endswith("on the CPU")]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(peak_mib_above_the_model, [(way, arguments) for way in ways], 1)
    model, batches = setting(arguments)
    taken = interleaved({way: partial(WAYS[way], model, batches) for way in ways}, arguments.repeats, clock)
    publish(
        arguments,
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        seconds={way: spread(taken[way], 3) for way in ways},
        over_plain_passes={way: ratio(taken[way], taken[PLAIN]) for way in ways[1:]},
        peak_mib_above_the_model={way: round(peak) for way, peak in zip(ways, peaks, strict=True)},
        scores_mib=round(sum(site.numel for site in outline_model(model).sites) * 4 / 2**20),
    )


if __name__ == "__main__":
    main()
