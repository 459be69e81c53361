"""Time of `allocate` on ViT-B/16's 86 million scores: one budget, and seven that share one selection.

The scores are synthetic, log-normal over columns, rows and entries, so that they cluster as real ones do; the time
hardly depends on them.

    python benchmarks/speed/allocate_speed.py --repeats 5 --output benchmarks/results/allocate_speed.json
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from measuring import interleaved, parser, prepare, publish, spread
from methods import vit
from synthetic_pattern import clustered_scores

from sensitune.allocation import allocate
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline, outline_model

SEVEN = [100_000, 200_000, 300_000, 400_000, 600_000, 800_000, 1_000_000]
SPARSE: dict[str, Any] = {"structured": None, "whole_vectors": False}
CASES: dict[str, dict[str, Any]] = {
    "tau 400,000": {"tau": 400_000},
    "one budget": {"budget": 400_000},
    "seven budgets": {"budget": SEVEN},
    "one budget, sparse only": {"budget": 400_000, **SPARSE},
    "seven budgets, sparse only": {"budget": SEVEN, **SPARSE},
}


def synthetic_sensitivity(outline: ModelOutline) -> Sensitivity:
    """Scores for every ranked parameter, slice by slice."""
    generator = torch.Generator().manual_seed(0)
    pieces: dict[str, list[torch.Tensor]] = {}
    for site in outline.sites:
        log = clustered_scores(site, generator) if len(site.shape) > 1 else torch.randn(site.shape, generator=generator)
        pieces.setdefault(site.parameter, []).append(log.exp_())
    return Sensitivity({name: torch.cat(parts) for name, parts in pieces.items()}, outline, {"criterion": "synthetic"})


def main() -> None:
    """Measure and report."""
    options = parser(__doc__, repeats=5)
    options.add_argument("--rank", type=int, default=8)
    arguments = options.parse_args()
    clock = prepare(arguments)
    sensitivity = synthetic_sensitivity(outline_model(vit()))
    calls = {name: partial(allocate, sensitivity, rank=arguments.rank, **case) for name, case in CASES.items()}
    taken = interleaved(calls, arguments.repeats, clock)
    publish(
        arguments,
        scores=sum(site.numel for site in sensitivity.sites),
        seconds={name: spread(values, 3) for name, values in taken.items()},
    )


if __name__ == "__main__":
    main()
