"""A model of eight layers whose scores are as a test wants them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from sensitune.advice import Advice, advise
from sensitune.sensitivity import Sensitivity, estimate_sensitivity


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.body:
            x = x + torch.tanh(layer(x))
        return self.head(x)


def scores(first: list[float], second: list[float]) -> Sensitivity:
    """Scores that are one value per layer, in each half of the batches; the other sum is that of the whole."""
    batches = [(torch.randn(4, 16), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    torch.manual_seed(0)
    found = estimate_sensitivity(Model(), batches, keep_halves=True)

    def filled(values: list[float]) -> dict[str, torch.Tensor]:
        return {
            name: torch.full_like(score, values[int(name.split(".")[1])]) if name.endswith("weight") else 0 * score
            for name, score in found.scores.items()
        }

    whole = [a + b for a, b in zip(first, second, strict=True)]
    return replace(found, scores=filled(whole), halves=(filled(first), filled(second)))


def of(first: list[float], second: list[float] | None = None) -> Advice:
    return advise(scores(first, second or first), budget=2 * 4 * 32, rank=4)
