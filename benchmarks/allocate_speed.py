"""Time of `allocate` on ViT-B/16's 86 million scores: one budget, and seven that share one selection.

The scores are synthetic, log-normal over columns, rows and entries, so that they cluster as real ones do; the time
hardly depends on them.

    python benchmarks/allocate_speed.py --repeats 5 --output benchmarks/results/allocate_speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timm
import torch
from synthetic_pattern import clustered_scores

from sensitune.allocation import allocate
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline, outline_model

SEVEN = [100_000, 200_000, 300_000, 400_000, 600_000, 800_000, 1_000_000]


def synthetic_sensitivity(outline: ModelOutline) -> Sensitivity:
    """Scores for every ranked parameter, slice by slice."""
    generator = torch.Generator().manual_seed(0)
    pieces: dict[str, list[torch.Tensor]] = {}
    for site in outline.sites:
        log = clustered_scores(site, generator) if len(site.shape) > 1 else torch.randn(site.shape, generator=generator)
        pieces.setdefault(site.parameter, []).append(log.exp_())
    return Sensitivity({name: torch.cat(parts) for name, parts in pieces.items()}, outline, {"criterion": "synthetic"})


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    outline = outline_model(timm.create_model("vit_base_patch16_224", num_classes=100))
    sensitivity, rank = synthetic_sensitivity(outline), arguments.rank
    cases: dict[str, Callable[[], Any]] = {
        "tau 400,000": lambda: allocate(sensitivity, tau=400_000, rank=rank),
        "one budget": lambda: allocate(sensitivity, budget=400_000, rank=rank),
        "seven budgets": lambda: allocate(sensitivity, budget=SEVEN, rank=rank),
        "one budget, sparse only": lambda: allocate(sensitivity, budget=400_000, structured=None, whole_vectors=False),
        "seven budgets, sparse only": lambda: allocate(sensitivity, budget=SEVEN, structured=None, whole_vectors=False),
    }
    taken = {name: [seconds(work) for _ in range(arguments.repeats)] for name, work in cases.items()}
    report = {
        "command": " ".join(["python", *sys.argv]),
        "scores": sum(site.numel for site in outline.sites),
        "rank": rank,
        "hardware": f"{platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "date": datetime.now(tz=UTC).date().isoformat(),
        "seconds": {
            name: {
                "median": round(statistics.median(values), 3),
                "min": round(min(values), 3),
                "max": round(max(values), 3),
            }
            for name, values in taken.items()
        },
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
