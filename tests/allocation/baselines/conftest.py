"""What the tests of the baselines choose from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from made_sites import make_site

from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline


@pytest.fixture
def outline() -> ModelOutline:
    """Six matrices of 600 scalars, a vector and a token of 20."""
    sites = [
        make_site(f"blocks.{block}.{operation}", (20, 30), block=block)
        for block in range(3)
        for operation in ("q", "v")
    ]
    norm = make_site("norm.weight", (20,), operation="norm")
    return ModelOutline((*sites, norm), ("head",), 50, {"cls_token": (1, 1, 20)}, {}, 4000)


def _random_scores(outline: ModelOutline, seed: int = 0) -> Sensitivity:
    generator = torch.Generator().manual_seed(seed)
    scores = {site.id: 1 - torch.rand(site.shape, generator=generator) for site in outline.sites}
    return Sensitivity(scores, outline, {"criterion": "magnitude", "losses": []})


@pytest.fixture(scope="session")
def make_scores() -> Callable[..., Sensitivity]:
    """``make_scores(outline, seed=0)``: positive scores, no two alike."""
    return _random_scores
