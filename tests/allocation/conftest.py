"""Outlines made by hand: the allocation knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from made_sites import make_site

from sensitune.sites import ModelOutline, Site


def _site(number: int, shape: tuple[int, ...], *, kind: str | None = None) -> Site:
    kind = kind or {1: "vector", 2: "matrix"}.get(len(shape), "tensor")
    return make_site(f"blocks.{number}.{kind}", shape, kind=kind, block=number)


def _outline(shapes: Sequence[tuple[int, ...]], *, token: int = 0) -> ModelOutline:
    """One site per shape: 1-D is a vector, 2-D a matrix, 3-D a tensor; and a class token of `token` scalars."""
    sites = tuple(_site(number, shape) for number, shape in enumerate(shapes))
    return ModelOutline(
        sites=sites,
        head=("head",),
        head_params=30,
        always_trained={"cls_token": (1, 1, token)} if token else {},
        frozen={"pos_embed": "position embedding"},
        backbone_params=sum(site.numel for site in sites) + token + 100,
    )


@pytest.fixture(scope="session")
def make_outline() -> Callable[..., ModelOutline]:
    return _outline
