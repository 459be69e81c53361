"""Sensitivities made up for a model: random scores and gradients, for tests of what is done with them."""

from __future__ import annotations

import torch
from torch import nn

from sensitune.sensitivity import Sensitivity
from sensitune.sites import outline_model


def random_sensitivity(
    model: nn.Module, *, seed: int = 0, split_fused: bool = True, spread: float = 3.0
) -> Sensitivity:
    """Scores that differ by orders of magnitude between parameters (`spread`), and gradients, for every ranked site."""
    outline = outline_model(model, split_fused=split_fused)
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    names = dict.fromkeys(site.parameter for site in outline.sites)
    scores, gradients = {}, {}
    for name in names:
        scale = 10 ** (spread * torch.rand((), generator=generator, dtype=torch.float64))
        gradients[name] = torch.randn(parameters[name].shape, generator=generator, dtype=torch.float64)
        scores[name] = torch.rand(parameters[name].shape, generator=generator, dtype=torch.float64) * scale
    return Sensitivity(scores, outline, {"criterion": "made up"}, gradients)
