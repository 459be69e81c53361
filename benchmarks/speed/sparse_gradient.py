"""Fit the numbers by which a sparse pattern chooses its way through the products.

The gradient: a dense product over a box costs a seconds an element; `torch.sparse.sampled_addmm` costs b seconds an
entry and, as it turns the output's gradient round, c seconds a row. The choice in `sensitune.tuner.kernels` needs b / a
and c / a. The output: a copy of the weight costs d seconds an element; the product beside the weight's costs e seconds
for every token and row or column of the box, and f for every token and element. The choice needs e / d and f / d.
CPU time is measured, so that other jobs on the machine do not count.

    python benchmarks/speed/sparse_gradient.py --output benchmarks/results/sparse_gradient.json
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from measuring import parser, prepare, publish

from sensitune.tuner.kernels import SparsePattern

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


def pattern_of(rows: int, columns: int, entries: int, width: int | None = None) -> SparsePattern:
    """Random entries in the first `columns` columns of a matrix ``[rows, width or columns]``."""
    flat = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(0))[:entries]
    return SparsePattern.build(flat // columns, flat % columns, (rows, width or columns))


def measure_gradient(rows: int, columns: int, entries: int, repeats: int) -> tuple[float, float]:
    """Seconds of the dense and of the sampled way for random entries in a box ``[rows, columns]``."""
    pattern = pattern_of(rows, columns, entries)
    grad, kept = torch.randn(TOKENS, rows), torch.randn(TOKENS, columns)
    dense = cpu_seconds(lambda: pattern.gradient(grad, kept, dense=True), repeats)
    return dense, cpu_seconds(lambda: pattern._sampled(pattern.in_box(grad), kept), repeats)


def measure_output(rows: int, columns: int, width: int, tokens: int, repeats: int) -> tuple[float, float]:
    """Seconds of a weight's copy with 1,000 entries in it, and of the mean product beside it, forward and backward."""
    pattern = pattern_of(rows, columns, 1_000, width)
    weight, values = torch.randn(rows, width), torch.randn(pattern.stored.numel())
    x, y = torch.randn(tokens, width), torch.randn(tokens, rows)
    copy = cpu_seconds(lambda: pattern.corrected(weight, values), repeats)
    forward = cpu_seconds(lambda: pattern.add_product(y, x, values), repeats)
    return copy, (forward + cpu_seconds(lambda: pattern.add_transposed_product(x, y, values), repeats)) / 2


def fit(features: list[list[float]], seconds: list[float]) -> list[float]:
    """Least squares of relative errors."""
    weights = 1 / torch.tensor(seconds, dtype=torch.float64)
    table = torch.tensor(features, dtype=torch.float64) * weights[:, None]
    return torch.linalg.lstsq(table, torch.ones(len(seconds), 1, dtype=torch.float64)).solution.flatten().tolist()


def main() -> None:
    """Measure two grids and fit."""
    options = parser(__doc__, repeats=5)
    options.set_defaults(threads=1, clock="cpu")
    arguments = options.parse_args()
    prepare(arguments)
    gradients = [
        (rows, columns, max(16, round(filling * rows * columns)))
        for rows in (768, 3072)
        for columns in (64, 256, 768)
        for filling in (0.01, 0.05, 0.2)
    ]
    outputs = [
        (rows, columns, width, tokens)
        for rows, width in ((768, 768), (3072, 768), (768, 3072))
        for columns in (8, 32, 128)
        for tokens in (197, TOKENS)
    ]
    dense, sampled = zip(*(measure_gradient(*case, arguments.repeats) for case in gradients), strict=True)
    copies, beside = zip(*(measure_output(*case, arguments.repeats) for case in outputs), strict=True)
    (per_element,) = fit([[rows * columns] for rows, columns, _ in gradients], dense)
    per_entry, per_row = fit([[entries, rows] for rows, _, entries in gradients], sampled)
    (per_weight,) = fit([[rows * width] for rows, _, width, _ in outputs], copies)
    per_edge, per_product = fit(
        [[tokens * (rows + columns), tokens * rows * columns] for rows, columns, _, tokens in outputs], beside
    )
    publish(
        arguments,
        nanoseconds={
            "box element": per_element * 1e9,
            "entry": per_entry * 1e9,
            "row": per_row * 1e9,
            "weight": per_weight * 1e9,
            "edge": per_edge * 1e9,
            "product": per_product * 1e9,
        },
        elements_per_entry=per_entry / per_element,
        elements_per_row=per_row / per_element,
        weights_per_edge=per_edge / per_weight,
        weights_per_product=per_product / per_weight,
        gradients=[
            {"rows": rows, "columns": columns, "entries": entries, "dense_ms": 1e3 * one, "sampled_ms": 1e3 * other}
            for (rows, columns, entries), one, other in zip(gradients, dense, sampled, strict=True)
        ],
        outputs=[
            {
                "rows": rows,
                "columns": columns,
                "of": width,
                "tokens": tokens,
                "copy_ms": 1e3 * one,
                "beside_ms": 1e3 * other,
            }
            for (rows, columns, width, tokens), one, other in zip(outputs, copies, beside, strict=True)
        ],
    )


if __name__ == "__main__":
    main()
