"""Time and peak memory of a training step on a GPU: SPT-LoRA and sparse-only against PEFT's LoRA and the others.

ViT-B/16 and ViT-L/16 at 224 px, batch 64 and 256, float32 with TF32 products and bfloat16 autocast. Time is taken with
CUDA events over several steps, the methods taking turns; peak memory is the allocator's, with nothing but the one
method's model and optimiser on the device. A case that does not fit is reported as such. SPT-LoRA is the published
allocation on ViT-B/16; elsewhere it is allocated, at the cost of the LoRA, from scores with the same clustering.

    python benchmarks/speed/gpu_step.py --output benchmarks/results/gpu_step.json

Without a GPU, at toy size, to see that everything runs:

    python benchmarks/speed/gpu_step.py --device cpu --model vit_tiny_patch16_224 --batch 2 --values 2000 --repeats 1
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from allocate_speed import synthetic_sensitivity
from measuring import parser, prepare, publish, ratio, spread
from methods import (
    CLASSES,
    DEFAULT_PUBLISHED,
    LORA,
    PEERS,
    PUBLISHED,
    adamw,
    lora,
    methods,
    train_step,
    trainable_without_head,
    vit,
    with_allocation,
)
from torch import nn

from sensitune.allocation import allocate
from sensitune.sites import outline_model

PRECISIONS = ("tf32", "bfloat16")
STEPS = 5  # between two events
Outcome = dict[str, Any]


def makers(model: str, values: int) -> dict[str, Callable[[], nn.Module]]:
    """Every method on this backbone."""
    make = partial(vit, model)
    if model == "vit_base_patch16_224":
        return methods(make, values, DEFAULT_PUBLISHED)
    outline = outline_model(make())
    budget = trainable_without_head(lora(make(), ["qkv"]))
    allocation = allocate(synthetic_sensitivity(outline), budget=budget)
    return methods(make, values, None) | {PUBLISHED: lambda: with_allocation(make(), allocation)}


def precision_of(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """Set how products are computed."""
    torch.set_float32_matmul_precision("high")
    return torch.autocast(device.type, dtype=torch.bfloat16) if name == "bfloat16" else nullcontext()


def seconds_of(steps: Callable[[], None], device: torch.device) -> float:
    """Seconds per step: CUDA events on a GPU, the wall clock elsewhere."""
    if device.type != "cuda":
        start = time.perf_counter()
        steps()
        return (time.perf_counter() - start) / STEPS
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    steps()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3 / STEPS


def run(model: nn.Module, batch: int, precision: str, device: torch.device) -> Callable[[], None]:
    """A function that makes `STEPS` steps."""
    images = torch.randn(batch, 3, 224, 224, device=device)
    labels = torch.randint(CLASSES, (batch,), device=device)
    optimizer = adamw(model)

    def steps() -> None:
        with precision_of(precision, device):
            for _ in range(STEPS):
                train_step(model, optimizer, images, labels)

    return steps


def clear(device: torch.device) -> None:
    """Free what nobody holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(make: Callable[[], nn.Module], batch: int, precision: str, device: torch.device) -> float | None:
    """Peak memory of one method alone; None if it does not fit (0 where there is no GPU)."""
    clear(device)
    try:
        run(make().to(device), batch, precision, device)()
    except torch.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


def measure(model: str, batch: int, precision: str, arguments: argparse.Namespace) -> Outcome:
    """One case: peaks first, each method alone; then times, taking turns with those that fit."""
    device = torch.device(arguments.device)
    made = makers(model, arguments.values)
    peaks = {name: peak_mib(make, batch, precision, device) for name, make in made.items()}
    clear(device)
    fitting = [name for name, peak in peaks.items() if peak is not None]
    steps = {name: run(made[name]().to(device), batch, precision, device) for name in fitting}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(arguments.repeats + 1):  # the first round warms up
        for name, call in steps.items():
            seconds = seconds_of(call, device)
            if number:
                taken[name].append(seconds)
    rows: dict[str, Outcome] = {name: {"fits": False} for name in made}
    for name in fitting:
        others = [other for other in PEERS if other in fitting and other != name]
        rows[name] = {
            "fits": True,
            "step_seconds": spread(taken[name]),
            "peak_mib": round(peaks[name] or 0.0),
            "step_over": {other: ratio(taken[name], taken[other]) for other in others},
            "peak_over": {other: round(peaks[name] / peaks[other], 4) for other in others if peaks[other]},
        }
    return {"model": model, "batch": batch, "precision": precision, "bar": {LORA: 1.05}, "rows": rows}


def main() -> None:
    """Measure every case and report."""
    options = parser(__doc__, repeats=7)
    options.add_argument("--device", default="cuda")
    options.add_argument("--model", nargs="+", default=["vit_base_patch16_224", "vit_large_patch16_224"])
    options.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    options.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    options.add_argument("--values", type=int, default=400_000)
    arguments = options.parse_args()
    prepare(arguments)
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here. `--device cpu` runs the same logic, at toy size only.")
    cases = [
        measure(model, batch, precision, arguments)
        for model in arguments.model
        for batch in arguments.batch
        for precision in arguments.precision
    ]
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "cpu"
    publish(arguments, device=name, steps_between_events=STEPS, cases=cases)


if __name__ == "__main__":
    main()
