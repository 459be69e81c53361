"""Switching between two sparse adapters, and merging an SPT-LoRA adapter, on ViT-B/16.

Switching: `set_adapter` between two sparse adapters of 0.4 M clustered values each, next to PEFT's LoRA and SHiRA with
two adapters; and what the first forward after a switch costs above any other. Merging: `merge_and_unload` of the
published 0.4 M allocation, next to PEFT's LoRA of the same rank on the layers where the allocation has LoRAs.

    python benchmarks/speed/adapter_cost.py --repeats 7 --output benchmarks/results/adapter_cost.json
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from measuring import Clock, parser, prepare, publish, ratio, spread, timed
from methods import DEFAULT_PUBLISHED, LORA, SHIRA, lora, predict, shira, vit, with_allocation
from synthetic_pattern import clustered_allocation
from torch import nn

from sensitune.allocation import load_published_allocation
from sensitune.sites import outline_model
from sensitune.tuner import SptConfig

SPARSE = "SPT sparse clustered"


def with_two_adapters(depth: int, values: int) -> dict[str, nn.Module]:
    """Models that carry a `default` and a `second` adapter, both used once."""
    outline = outline_model(vit(depth=depth))
    first, second = (replace(clustered_allocation(outline, values, seed), always_trained=()) for seed in (0, 1))
    models = {
        SPARSE: with_allocation(vit(depth=depth), first),
        LORA: lora(vit(depth=depth), ["qkv"]),
        SHIRA: shira(vit(depth=depth), first),
    }
    models[SPARSE].add_adapter("second", SptConfig.from_allocation(second, dropout=0.0, drop_path=0.0))
    for name in (LORA, SHIRA):
        models[name].add_adapter("second", models[name].peft_config["default"])
    return models


def switching(models: dict[str, nn.Module], repeats: int, clock: Clock) -> dict[str, Any]:
    """Milliseconds of `set_adapter`, and of the forward that follows, for each model."""
    images = torch.randn(1, 3, 224, 224)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    extra: dict[str, list[float]] = {name: [] for name in models}
    names = cycle(["second", "default"])
    for number in range(repeats + 2):  # the first two rounds use each adapter for the first time
        adapter = next(names)
        for name, model in models.items():
            switch = timed(partial(model.set_adapter, adapter), clock)
            first = timed(partial(predict, model, images), clock)
            again = timed(partial(predict, model, images), clock)
            if number > 1:
                seconds[name].append(1e3 * switch)
                extra[name].append(1e3 * (first - again))
    return {
        name: {"set_adapter_ms": spread(seconds[name], 2), "first_forward_above_the_next_ms": spread(extra[name], 2)}
        for name in models
    }


def merging(published: Path, repeats: int, clock: Clock) -> dict[str, Any]:
    """Seconds of `merge_and_unload`; each turn gets fresh models, made outside the clock."""
    allocation = load_published_allocation(published, outline_model(vit()))
    modules = sorted({allocation.site(name).module for name in allocation.structured})
    makers = {
        "SPT-LoRA published": lambda: with_allocation(vit(), allocation),
        "PEFT LoRA": lambda: lora(vit(), modules),
    }
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for number in range(repeats + 1):
        for name, make in makers.items():
            model = make()
            taken = timed(model.merge_and_unload, clock)
            if number:
                seconds[name].append(taken)
    return {
        "modules": len(modules),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "spt_over_lora": ratio(*seconds.values()),
    }


def main() -> None:
    """Measure and report."""
    options = parser(__doc__, repeats=7)
    options.add_argument("--published", type=Path, default=DEFAULT_PUBLISHED)
    options.add_argument("--values", type=int, default=400_000)
    arguments = options.parse_args()
    clock = prepare(arguments)
    publish(
        arguments,
        switching=switching(with_two_adapters(12, arguments.values), 2 * arguments.repeats, clock),
        merging=merging(arguments.published, arguments.repeats, clock),
    )


if __name__ == "__main__":
    main()
