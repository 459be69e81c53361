"""Allocate a budget over a billion scores that lie on the disk: time, and the most memory a fresh process takes.

The scores are those of a made-up decoder (20 blocks of width 2,048, feed-forward 5,632: 1.03 billion scalars),
log-normal over columns, rows and entries. They are written to a temporary folder (4 GB in float32), read through
`Sensitivity.load(..., lazy=True)`, and removed. The first run reads from the disk (the page cache is dropped), the
others from the page cache.

    python benchmarks/speed/allocate_scale.py --repeats 2 --output benchmarks/results/allocate_scale.json
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from measuring import CLOCKS, parser, peak_resident_mib, publish, spread, timed
from synthetic_pattern import clustered_scores

from sensitune.allocation import allocate
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline, Site

DTYPES = {"float32": (torch.float32, "F32"), "bfloat16": (torch.bfloat16, "BF16")}
CASES: dict[str, dict[str, Any]] = {
    "one budget, LoRA": {"budget": "0.4%"},
    "seven budgets, LoRA": {"budget": ["0.05%", "0.1%", "0.2%", "0.3%", "0.4%", "0.5%", "0.6%"]},
    "one budget, sparse only": {"budget": "0.4%", "structured": None, "whole_vectors": False},
}


def decoder(blocks: int, width: int, inner: int) -> ModelOutline:
    """The outline of a decoder without embeddings and head."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("q", "k", "v", "o"), (width, width))
    shapes |= {"gate": (inner, width), "up": (inner, width), "down": (width, inner), "norm1": (width,)}
    sites = tuple(
        Site(
            id=f"layers.{block}.{name}",
            parameter=f"layers.{block}.{name}",
            shape=shape,
            kind="matrix" if len(shape) == 2 else "vector",
            block=block,
            operation=name,
        )
        for block in range(blocks)
        for name, shape in shapes.items()
    )
    return ModelOutline(sites, (), 0, {}, {}, sum(site.numel for site in sites))


def write_scores(path: Path, outline: ModelOutline, dtype: str) -> None:
    """A sensitivity file, tensor by tensor: `Sensitivity.save` would need all of them in memory."""
    torch_dtype, name = DTYPES[dtype]
    content = {"kind": "sensitivity", "tensors": [site.parameter for site in outline.sites]}
    document = json.dumps(
        content | {"outline": asdict(outline), "metadata": {"criterion": "synthetic"}, "gradients": []}
    )
    header: dict[str, Any] = {"__metadata__": {"sensitune": document}}
    end = 0
    for site in outline.sites:
        start, end = end, end + site.numel * torch_dtype.itemsize
        header[site.parameter] = {"dtype": name, "shape": site.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for site in outline.sites:
            log = clustered_scores(site, generator) if site.kind == "matrix" else torch.randn(site.shape)
            file.write(log.exp_().to(torch_dtype).view(torch.uint8).numpy())
        file.flush()
        os.fsync(file.fileno())


def forget(path: Path) -> None:
    """Drop a file from the page cache, where the system can."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(path: Path, case: str, clock: str, threads: int) -> tuple[float, float, int]:
    """Seconds, peak memory and trainable parameters of one allocation; run in a process of its own."""
    torch.set_num_threads(threads)
    found: list[Any] = []
    options = CASES[case]

    def work() -> None:
        found.append(allocate(Sensitivity.load(path, lazy=True), **options))

    seconds = timed(work, CLOCKS[clock])
    last = found[0][-1] if isinstance(found[0], list) else found[0]
    return seconds, peak_resident_mib(), last.trainable_params


def main() -> None:
    """Write the scores, allocate, report, and remove them."""
    options = parser(__doc__, repeats=2)
    options.add_argument("--blocks", type=int, default=20)
    options.add_argument("--width", type=int, default=2048)
    options.add_argument("--dtype", choices=list(DTYPES), default="float32")
    options.add_argument("--folder", type=Path, default=None, help="where to put the scores; default: the system's")
    arguments = options.parse_args()
    outline = decoder(arguments.blocks, arguments.width, 11 * arguments.width // 4)
    scores = sum(site.numel for site in outline.sites)
    size = scores * DTYPES[arguments.dtype][0].itemsize
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        free = shutil.disk_usage(folder).free
        if free < 1.1 * size:
            raise SystemExit(f"The scores take {size / 1e9:.1f} GB; {folder} has {free / 1e9:.1f} GB free.")
        path = Path(folder) / "scores.safetensors"
        write_scores(path, outline, arguments.dtype)
        rows = {}
        for case in CASES:
            forget(path)
            runs = []
            for _ in range(arguments.repeats + 1):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    runs.append(pool.apply(measure, (path, case, arguments.clock, arguments.threads)))
            rows[case] = {
                "seconds_from_disk": round(runs[0][0], 2),
                "seconds": spread([seconds for seconds, _, _ in runs[1:]], 2),
                "peak_resident_mib": math.ceil(max(peak for _, peak, _ in runs)),
                "trainable_params": runs[0][2],
            }
    publish(arguments, scores=scores, bytes_on_disk=size, dtype=arguments.dtype, rows=rows)


if __name__ == "__main__":
    main()
