"""Time and memory of one training step: SPT against PEFT's LoRA and sparse methods, biases and norms, and everything.

ViT-B/16 at 224 px, float32, batch 8, head of 100, random weights (the cost does not depend on them). First with the
default settings (dropout and drop-path 0.1; PEFT's LoRA with the same dropout), then all methods without dropout. All
take turns in one process, so that every ratio is between neighbours in time. The peak of a step is resident memory, in
a process of its own for each method, in a plain loop that holds the last loss while the next step runs; once with
glibc's settings, whose heap holds on to more than is used, and once with every tensor in pages of its own, which go
back as soon as it does.

    python benchmarks/speed/step_cost.py --repeats 7 --output benchmarks/results/step_cost.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import (
    Clock,
    forget_peak,
    interleaved,
    kept_for_backward,
    parser,
    peak_since_mib,
    prepare,
    publish,
    ratio,
    resident_mib,
    spread,
)
from methods import (
    CLASSES,
    DEFAULT_PUBLISHED,
    FLOOR,
    LORA,
    PEERS,
    PUBLISHED,
    adamw,
    methods,
    predict,
    train_step,
    trainable_without_head,
    vit,
)
from torch import nn

PLAIN = "plain"
DEFAULT_DROPOUT = 0.1
WITH_DROPOUT = (FLOOR, LORA, PUBLISHED)


def main() -> None:
    """Measure and report."""
    arguments = options().parse_args()
    clock = prepare(arguments)
    if arguments.peak is not None:
        print(peak_of(made(arguments, arguments.dropout)[arguments.peak](), arguments))
        return
    default = {name: make for name, make in made(arguments, DEFAULT_DROPOUT).items() if name in WITH_DROPOUT}
    publish(
        arguments,
        batch=arguments.batch,
        depth=arguments.depth,
        default_settings=rows(chosen(default, arguments), DEFAULT_DROPOUT, arguments, clock),
        rows=rows(chosen(made(arguments, 0.0), arguments), 0.0, arguments, clock),
    )


def options() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__, repeats=7)
    found.add_argument("--published", type=Path, default=DEFAULT_PUBLISHED, help="a published allocation, .pth")
    found.add_argument("--depth", type=int, default=12)
    found.add_argument("--batch", type=int, default=8)
    found.add_argument("--values", type=int, default=400_000)
    found.add_argument("--only", nargs="*", default=None, help="substrings of the methods to run")
    found.add_argument("--peak", default=None, help="print the peak of one method's step, in MiB, and end")
    found.add_argument("--dropout", type=float, default=0.0, help="with --peak: its dropout")
    found.add_argument(
        "--peaks-from", type=Path, default=None, help="an earlier result whose peaks stand, to save time"
    )
    return found


def made(arguments: argparse.Namespace, dropout: float) -> dict[str, Callable[[], nn.Module]]:
    """Every method by name."""
    make = partial(vit, depth=arguments.depth)
    return methods(make, arguments.values, arguments.published if arguments.depth == 12 else None, dropout)


def chosen(known: dict[str, Callable[[], nn.Module]], arguments: argparse.Namespace) -> dict[str, nn.Module]:
    """The models of the methods that are to run."""
    only = arguments.only
    return {name: make() for name, make in known.items() if not only or any(part in name for part in only)}


def batch_of(arguments: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and classes."""
    return torch.randn(arguments.batch, 3, 224, 224), torch.randint(CLASSES, (arguments.batch,))


def rows(
    models: dict[str, nn.Module], dropout: float, arguments: argparse.Namespace, clock: Clock
) -> dict[str, dict[str, Any]]:
    """Everything about each model."""
    images, labels = batch_of(arguments)
    kept = {name: kept_for_backward(model, images, labels) for name, model in models.items()}
    peaks, held = (
        earlier_peaks(arguments.peaks_from, dropout) if arguments.peaks_from else measured_peaks(models, dropout)
    )
    steps = interleaved(
        {name: partial(train_step, model, adamw(model), images, labels) for name, model in models.items()},
        arguments.repeats,
        clock,
    )
    plain = {**models, PLAIN: vit(depth=arguments.depth)}
    forwards = interleaved(
        {name: partial(predict, model, images) for name, model in plain.items()}, arguments.repeats, clock
    )

    def row(name: str) -> dict[str, Any]:
        others = [other for other in PEERS if other in models and other != name]
        return {
            "trainable_without_head": trainable_without_head(models[name]),
            "kept_for_backward_mb": round(kept[name] / 1e6, 1),
            "kept_over": {other: round(kept[name] / kept[other], 4) for other in others},
            "peak_above_model_mib": round(peaks[name], 1),
            "peak_over": {other: round(peaks[name] / peaks[other], 4) for other in others},
            "glibc_peak_above_model_mib": round(held[name], 1),
            "step_seconds": spread(steps[name]),
            "step_over": {other: ratio(steps[name], steps[other]) for other in others},
            "eval_forward_over_plain": ratio(forwards[name], forwards[PLAIN]),
        }

    return {name: row(name) for name in models}


def measured_peaks(names: Iterable[str], dropout: float) -> tuple[dict[str, float], dict[str, float]]:
    """The peak of each method's step, with every tensor in pages of its own and as glibc does it."""
    exact, held = ({name: peak_elsewhere(name, dropout, exact=each) for name in names} for each in (True, False))
    return exact, held


def earlier_peaks(path: Path, dropout: float) -> tuple[dict[str, float], dict[str, float]]:
    """The same from a result."""
    found = json.loads(path.read_text())["default_settings" if dropout else "rows"]
    keys = "peak_above_model_mib", "glibc_peak_above_model_mib"
    exact, held = ({name: row[key] for name, row in found.items()} for key in keys)
    return exact, held


def peak_elsewhere(name: str, dropout: float, *, exact: bool) -> float:
    """The peak of a method's step in a fresh process, with every tensor in pages of its own or as glibc does it."""
    command = [sys.executable, *sys.argv, "--peak", name, "--dropout", str(dropout)]
    surroundings = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "65536"} if exact else {})}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=surroundings)
    return float(done.stdout.split()[-1])


def peak_of(model: nn.Module, arguments: argparse.Namespace) -> float:
    """The most memory of three steps above the model and its optimiser's state, in MiB."""
    images, labels = batch_of(arguments)
    optimizer = adamw(model.train())
    before = resident_mib()
    forget_peak()
    for _ in range(3):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return peak_since_mib() - before


if __name__ == "__main__":
    main()
