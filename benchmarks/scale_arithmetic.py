"""What larger models need while they are scored and trained, line by line, from what `scale.py` has measured.

Bytes per stored parameter are measured; so is what a token costs, as the difference of two runs that differ in nothing
but their number of tokens. Of that, the part of the checkpoints (one hidden state for every block) and the part of the
logits (once in the model's type and in float32, and the gradients of both) are counted, and what is left, the inside of
one block, grows with the width. The same sum for the measured model stands beside what it took.

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
TRAINED = 4 * FULL  # value, gradient, and AdamW's two moments


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


MEASURED = Shape("1.1 B, measured", 22, 2048, 5632, 256)
LARGER = (Shape("7 B", 32, 4096, 11_008, 4096), Shape("70 B", 80, 8192, 28_672, 1024))


def token_parts(shape: Shape) -> tuple[int, int]:
    """Bytes of a token's checkpoints, and of its logits."""
    return shape.blocks * shape.width * HALF, shape.vocabulary * 2 * (HALF + FULL)


def inside_block(short: dict[str, Any], long: dict[str, Any], stage: str) -> float:
    """Measured bytes of a token in one block of the measured model."""
    tokens = long["tokens_per_step"] - short["tokens_per_step"]
    grown = (long["stages"][stage]["peak_own_mib"] - short["stages"][stage]["peak_own_mib"]) * MIB
    return max(grown / tokens - sum(token_parts(MEASURED)), 0.0)


def lines(shape: Shape, per_parameter: float, block: float, tokens: int, share: float) -> dict[str, float]:
    """MiB of each thing that a training step needs."""
    kept, logits = token_parts(shape)
    found = {
        "linear layers in 4 bits": shape.linear * per_parameter,
        "embeddings and head, bfloat16": shape.embeddings * HALF,
        "trained values, gradients, AdamW": (shape.linear + shape.embeddings) * share * TRAINED,
        "one layer dequantised": shape.width * shape.inner * HALF,
        "checkpoints": tokens * kept,
        "inside one block": tokens * block * shape.width / MEASURED.width,
        "logits and their gradients": tokens * logits,
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
    short, long = (json.loads(path.read_text()) for path in (arguments.short, arguments.long))
    per_parameter, block = short["stored_bytes_per_linear_parameter"], inside_block(short, long, "train")
    print(f"bytes per linear parameter {per_parameter}, of a token inside one block {block:,.0f}")
    tables = {
        f"{shape.name}, {tokens} tokens": lines(shape, per_parameter, block, tokens, arguments.share)
        for shape, tokens in (
            (MEASURED, short["tokens_per_step"]),
            (MEASURED, long["tokens_per_step"]),
            *((each, arguments.tokens) for each in LARGER),
        )
    }
    print("| MiB | " + " | ".join(tables) + " |")
    for name in next(iter(tables.values())):
        print(f"| {name} | " + " | ".join(f"{table[name]:,.0f}" for table in tables.values()) + " |")
    for each in (short, long):
        row = each["stages"]["train"]
        print("measured above an empty process:", row["peak_own_mib"] - each["own_mib_without_a_model"], "MiB")
    for shape in LARGER:
        print(f"scores of {shape.name}: {shape.linear * FULL / 1e9:.1f} GB in float32")


if __name__ == "__main__":
    main()
