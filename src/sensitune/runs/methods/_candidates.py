"""What the method auto tries: at most six ways to spend one budget, in the order in which ties go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MOST_CANDIDATES: Final = 6
"""What the cost of auto, three full runs at most, is counted for."""


@dataclass(frozen=True)
class Candidate:
    """A method with its settings.

    Attributes:
        name: Its folder's name.
        label: What a reader calls it.
        method: Name of its method.
        reason: Why it is tried.
        allocation: Its settings of that group; without a rank, a method that spends no budget takes the highest that
            the budget pays for.
        in_place_rate: Learning rate of pretrained values tuned in place, as a multiple of the recipe's.
    """

    name: str
    label: str
    method: str
    reason: str
    allocation: Mapping[str, Any] = field(default_factory=dict)
    in_place_rate: float = 1.0


CANDIDATES: Final = (
    Candidate(
        "spt-lora-best",
        "SPT-LoRA, preset best",
        "spt-lora",
        "first of all that spend one budget at 2 passes, with q and v (docs/accuracy.md)",
        {"lora_start": "gradient"},
        in_place_rate=0.1,
    ),
    Candidate(
        "lora-qv-gradient",
        "LoRA on q and v, gradient start",
        "lora-qv",
        "level with the preset at 2 passes; needs scores for its start alone",
        {"lora_start": "gradient"},
    ),
    Candidate(
        "spt-lora-paper",
        "SPT-LoRA",
        "spt-lora",
        "the published method, which a longer training favours",
    ),
    Candidate(
        "spt-adapter",
        "SPT-Adapter, slower in place",
        "spt-adapter",
        "not linear, so that it can say what no LoRA can; best of the adapters",
        in_place_rate=0.1,
    ),
    Candidate(
        "lora",
        "LoRA on all linear layers",
        "lora-stored",
        "what PEFT does without scores: nothing to go wrong with",
    ),
    Candidate(
        "sparse",
        "SPT sparse only, slower in place",
        "sparse",
        "single values alone: best where small budgets leave no room for modules",
        in_place_rate=0.1,
    ),
)
