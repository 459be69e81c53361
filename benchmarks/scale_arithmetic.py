"""What larger models need in a training step, line by line, from what two runs of `scale.py` have measured.

The runs differ in their number of tokens and in nothing else that matters. Measured are: bytes per stored parameter;
what stays per trained value (the value, AdamW's moments, indices); what a step needs for a moment, of which a part
comes with the tokens (the larger of scoring's and training's, per token) and a part does not, per trained value. Of a
token's part the checkpoints are counted (one hidden state for every block); the rest, the logits and the inside of one
block, is taken to grow with the width, which for the logits is too much. The same sum for the measured model stands
beside what it took.

    python benchmarks/scale_arithmetic.py benchmarks/results/scale_nf4.json benchmarks/results/scale_nf4_long.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
HALF, FULL = 2, 4  # bytes of bfloat16 and float32


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes."""

    name: str
    blocks: int
    width: int
    inner: int
    keys: int
    vocabulary: int = 32_000

    @property
    def linear(self) -> int:
        """Parameters of its linear layers, the head aside."""
        return self.blocks * (2 * self.width**2 + 2 * self.width * self.keys + 3 * self.width * self.inner)

    @property
    def embeddings(self) -> int:
        """Parameters of the embeddings and the head."""
        return 2 * self.vocabulary * self.width

    @property
    def checkpoints(self) -> int:
        """Bytes that a token leaves from the forward pass."""
        return self.blocks * self.width * HALF

    @property
    def largest_layer(self) -> int:
        """Bytes of its largest linear layer in bfloat16."""
        return self.width * self.inner * HALF


MEASURED = Shape("1.1 B", 22, 2048, 5632, 256)
LARGER = (Shape("7 B", 32, 4096, 11_008, 4096), Shape("70 B", 80, 8192, 28_672, 1024))


@dataclass(frozen=True)
class Rates:
    """What was measured, in bytes.

    Attributes:
        stored: Per parameter of a linear layer.
        kept: Per trained value, between two steps.
        moment: Per trained value, within a step.
        token: Per token of a step.
    """

    stored: float
    kept: float
    moment: float
    token: float

    @classmethod
    def of(cls, short: dict[str, Any], long: dict[str, Any]) -> Rates:
        """From two runs."""
        trained = short["trainable_params"]
        tokens = [each["tokens_per_step"] for each in (short, long)]
        step = [_own(each, "train", "peak") - _own(each, "train", "after") for each in (short, long)]
        pass_ = [_own(each, "score", "peak") - _own(each, "build", "after") for each in (short, long)]
        slopes = [(two - one) / (tokens[1] - tokens[0]) for one, two in (step, pass_)]
        fixed = step[0] - slopes[0] * tokens[0] - MEASURED.largest_layer
        kept = (_own(short, "train", "after") - _own(short, "allocate", "after")) / trained
        return cls(short["stored_bytes_per_linear_parameter"], kept, max(fixed, 0.0) / trained, max(slopes))


def _own(run: dict[str, Any], stage: str, when: str) -> int:
    return int(run["stages"][stage]["peak_own_mib" if when == "peak" else "own_mib_afterwards"] * MIB)


def lines(shape: Shape, rates: Rates, tokens: int, share: float) -> dict[str, float]:
    """MiB of each thing that a training step needs."""
    trained = (shape.linear + shape.embeddings) * share
    found = {
        "linear layers in 4 bits": shape.linear * rates.stored,
        "embeddings and head in bfloat16": shape.embeddings * HALF,
        "trained values, moments, indices": trained * rates.kept,
        "a step's temporaries": trained * rates.moment,
        "the largest layer dequantised": shape.largest_layer,
        "checkpoints": tokens * shape.checkpoints,
        "inside one block, logits": tokens * (rates.token - MEASURED.checkpoints) * shape.width / MEASURED.width,
    }
    return {name: size / MIB for name, size in found.items()} | {"sum": sum(found.values()) / MIB}


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("short", type=Path)
    options.add_argument("long", type=Path)
    options.add_argument("--tokens", type=int, default=2048, help="tokens of a step of the larger models")
    options.add_argument("--share", type=float, default=0.004, help="trained share of all parameters")
    arguments = options.parse_args()
    runs = [json.loads(path.read_text()) for path in (arguments.short, arguments.long)]
    rates = Rates.of(*runs)
    tables = {f"1.1 B, {run['tokens_per_step']} tokens": (MEASURED, run["tokens_per_step"]) for run in runs}
    tables |= {f"{shape.name}, {arguments.tokens:,} tokens": (shape, arguments.tokens) for shape in LARGER}
    columns = [lines(shape, rates, tokens, arguments.share) for shape, tokens in tables.values()]
    print(f"bytes: {rates.stored} per stored parameter, {rates.kept:.1f} kept and {rates.moment:.1f} for a moment per")
    print(f"trained value, {rates.token:,.0f} per token, of which {MEASURED.checkpoints:,} are checkpoints\n")
    print("| MiB | " + " | ".join(tables) + " |")
    print("|---|" + "---:|" * len(tables))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:,.0f}" for column in columns) + " |")
    took = [run["stages"]["train"]["peak_own_mib"] - run["own_mib_without_a_model"] for run in runs]
    print("| measured | " + " | ".join(f"{mib:,}" for mib in took) + " | | |")


if __name__ == "__main__":
    main()
