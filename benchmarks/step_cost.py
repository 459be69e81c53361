"""Time and memory of one training step: SPT against PEFT's LoRA and sparse methods, and against biases and norms only.

ViT-B/16 at 224 px, float32, batch 8, head of 100, random weights (the cost does not depend on them). All methods take
turns in one process, so that every ratio is between neighbours in time. `--clock cpu` counts CPU time instead of wall
time: less exact about waiting for memory, but other jobs on the machine hardly disturb it.

    python benchmarks/step_cost.py --published cifar_lora_0.4.pth --repeats 7 --output benchmarks/results/step_cost.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import peft
import timm
import torch
import torch.nn.functional as F
from peft import LoraConfig, ShiraConfig, get_peft_model
from synthetic_pattern import clustered_allocation, random_pattern_allocation
from torch import nn

from sensitune.allocation import Allocation, load_published_allocation
from sensitune.sites import outline_model
from sensitune.tuner import SptConfig


def vit(depth: int) -> nn.Module:
    """The backbone; its position in every method's tuple of settings is the same, so only the method differs."""
    torch.manual_seed(0)
    return timm.create_model("vit_base_patch16_224", num_classes=100, depth=depth)


def biases_and_norms(model: nn.Module) -> nn.Module:
    """The floor: what tuning costs when nothing but vectors is trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head.") or (parameter.dim() == 1 and "patch_embed" not in name))
    return model


def with_allocation(model: nn.Module, allocation: Allocation) -> nn.Module:
    """An SPT model without dropout, so that its cost compares."""
    return get_peft_model(model, SptConfig.from_allocation(allocation, dropout=0.0, drop_path=0.0))


def shira(model: nn.Module, allocation: Allocation) -> nn.Module:
    """SHiRA on the modules that a sparse allocation touches, with as many values in total."""
    modules = sorted(
        {allocation.site(name).module for name in allocation.sparse if allocation.site(name).kind == "matrix"}
    )
    sizes = sum(sum(model.get_submodule(name).weight.shape) for name in modules)
    rank = max(1, round(allocation.sparse_params / sizes))
    return get_peft_model(model, ShiraConfig(r=rank, target_modules=modules, modules_to_save=["head"]))


def supertuning(model: nn.Module, allocation: Allocation) -> nn.Module:
    """Super-Tuning on the same modules with the same number of values."""
    modules = sorted(
        {allocation.site(name).module for name in allocation.sparse if allocation.site(name).kind == "matrix"}
    )
    weights = sum(model.get_submodule(name).weight.numel() for name in modules)
    config = peft.SupertuningConfig(
        target_modules=modules, modules_to_save=["head"], sparsity=1.0 - allocation.sparse_params / weights
    )
    return get_peft_model(model, config)


def kept_for_backward(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes that autograd keeps for backward, each storage once, parameters not counted.

    Read off the graph itself: hooks on what is saved would change what is saved (SPT keeps nothing it can compute again
    from its neighbours, and leaves that off under hooks).

    Returns:
        The sum over distinct storages.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    model.train()
    loss = F.cross_entropy(model(images), labels)
    storages: dict[int, int] = {}
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(parent for parent, _ in node.next_functions)
        for tensor in saved_by(node):
            parts = [tensor._indices(), tensor._values()] if tensor.is_sparse else [tensor]  # SHiRA saves sparse ones
            for storage in (part.untyped_storage() for part in parts):
                if storage.data_ptr() not in parameters:
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def saved_by(node: torch.autograd.graph.Node) -> list[torch.Tensor]:
    """The tensors that one node of the graph keeps."""
    found = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
    found += list(getattr(node, "saved_tensors", ()))
    nested = [item for value in found for item in (value if isinstance(value, (tuple, list)) else (value,))]
    return [item for item in nested if isinstance(item, torch.Tensor)]


Clock: TypeAlias = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor, clock: Clock
) -> float:
    """Seconds of one training step."""
    start = clock()
    model.train()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return clock() - start


def eval_forward(model: nn.Module, images: torch.Tensor, clock: Clock) -> float:
    """Seconds of one forward pass for prediction."""
    model.eval()
    with torch.no_grad():
        start = clock()
        model(images)
        return clock() - start


def methods(depth: int, published: Path | None, values: int) -> dict[str, nn.Module]:
    """Every method on its own copy of the backbone."""
    outline = outline_model(vit(depth))
    clustered = clustered_allocation(outline, values)
    scattered = random_pattern_allocation(outline, values)
    made: dict[str, nn.Module] = {"biases and norms": biases_and_norms(vit(depth))}
    made["PEFT LoRA r=8 qkv"] = get_peft_model(
        vit(depth), LoraConfig(r=8, target_modules=["qkv"], modules_to_save=["head"])
    )
    if published is not None and depth == 12:
        made["SPT-LoRA published"] = with_allocation(vit(depth), load_published_allocation(published, outline))
    made["SPT sparse clustered"] = with_allocation(vit(depth), replace(clustered, always_trained=()))
    made["SPT sparse random"] = with_allocation(vit(depth), replace(scattered, always_trained=()))
    made["SHiRA"] = shira(vit(depth), clustered)
    made["Super-Tuning"] = supertuning(vit(depth), clustered)
    return made


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, default=None, help="a published allocation, .pth")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--values", type=int, default=400_000)
    parser.add_argument("--only", nargs="*", default=None, help="substrings of the methods to run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = CLOCKS[arguments.clock]
    images = torch.randn(arguments.batch, 3, 224, 224)
    labels = torch.randint(100, (arguments.batch,))
    models = methods(arguments.depth, arguments.published, arguments.values)
    if arguments.only:
        models = {name: model for name, model in models.items() if any(part in name for part in arguments.only)}
    plain = vit(arguments.depth)
    optimizers = {
        name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for name, model in models.items()
    }
    steps: dict[str, list[float]] = {name: [] for name in models}
    forwards: dict[str, list[float]] = {name: [] for name in [*models, "plain"]}
    kept = {name: kept_for_backward(model, images, labels) for name, model in models.items()}
    for repeat in range(arguments.repeats + 1):
        for name, model in models.items():
            seconds = step(model, optimizers[name], images, labels, clock)
            if repeat:  # the first round warms up
                steps[name].append(seconds)
        for name, model in [*models.items(), ("plain", plain)]:
            seconds = eval_forward(model, images, clock)
            if repeat:
                forwards[name].append(seconds)
    rows = {
        name: {
            "trainable_without_head": sum(
                p.numel() for n, p in model.named_parameters() if p.requires_grad and "head" not in n
            ),
            "kept_for_backward_mb": round(kept[name] / 1e6, 1),
            "step_seconds": round(statistics.median(steps[name]), 4),
            "eval_forward_over_plain": round(paired_ratio(forwards[name], forwards["plain"]), 4),
            **{
                f"step_over_{other.replace(' ', '_')}": round(paired_ratio(steps[name], steps[other]), 4)
                for other in models
                if other in ("biases and norms", "PEFT LoRA r=8 qkv", "SHiRA", "Super-Tuning") and other != name
            },
        }
        for name, model in models.items()
    }
    report = {
        "command": f"python benchmarks/step_cost.py --repeats {arguments.repeats} --clock {arguments.clock} "
        f"--threads {arguments.threads} --depth {arguments.depth}",
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores",
        "torch": torch.__version__,
        "peft": peft.__version__,
        "date": datetime.now(tz=UTC).date().isoformat(),
        "rows": rows,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")


def paired_ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios of neighbouring runs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
