"""Fit the two numbers by which a sparse pattern chooses the way to its gradient.

The dense product over a box costs a seconds an element; `torch.sparse.sampled_addmm` costs b seconds an entry and, as
it turns the output's gradient round, c seconds a row. The choice in `sensitune.tuner._pattern` needs b / a and c / a.
CPU time is measured, so that other jobs on the machine do not count.

    python benchmarks/speed/sparse_gradient.py --output benchmarks/results/sparse_gradient.json
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from measuring import parser, prepare, publish

from sensitune.tuner._pattern import SparsePattern

TOKENS = 8 * 197  # ViT-B/16 at 224 px, batch 8


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """Least CPU time of one call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def measure(rows: int, columns: int, entries: int, repeats: int) -> tuple[float, float]:
    """Seconds of the dense and of the sampled way for random entries in a box ``[rows, columns]``."""
    flat = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(0))[:entries]
    pattern = SparsePattern.build(flat // columns, flat % columns, (rows, columns))
    grad, kept = torch.randn(TOKENS, rows), torch.randn(TOKENS, columns)
    dense = cpu_seconds(lambda: (grad.t() @ kept).flatten()[pattern.position], repeats)
    return dense, cpu_seconds(lambda: pattern._sampled(grad, kept), repeats)


def main() -> None:
    """Measure a grid and fit by least squares."""
    options = parser(__doc__, repeats=5)
    options.set_defaults(threads=1, clock="cpu")
    arguments = options.parse_args()
    prepare(arguments)
    grid = [
        (rows, columns, max(16, round(filling * rows * columns)))
        for rows in (768, 3072)
        for columns in (64, 256, 768)
        for filling in (0.01, 0.05, 0.2)
    ]
    times = [measure(*case, arguments.repeats) for case in grid]
    boxes = torch.tensor([[float(rows * columns)] for rows, columns, _ in grid])
    counts = torch.tensor([[float(entries), float(rows)] for rows, _, entries in grid])
    per_element = torch.linalg.lstsq(boxes, torch.tensor([[dense] for dense, _ in times])).solution.item()
    per_entry, per_row = torch.linalg.lstsq(
        counts, torch.tensor([[sampled] for _, sampled in times])
    ).solution.flatten()
    publish(
        arguments,
        nanoseconds_per_box_element=per_element * 1e9,
        nanoseconds_per_entry=float(per_entry) * 1e9,
        nanoseconds_per_row=float(per_row) * 1e9,
        elements_per_entry=float(per_entry) / per_element,
        elements_per_row=float(per_row) / per_element,
        cases=[
            {"rows": rows, "columns": columns, "entries": entries, "dense_ms": 1e3 * dense, "sampled_ms": 1e3 * sampled}
            for (rows, columns, entries), (dense, sampled) in zip(grid, times, strict=True)
        ],
    )


if __name__ == "__main__":
    main()
