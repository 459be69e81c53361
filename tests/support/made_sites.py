"""Sites made by hand, for tests that need no model."""

from __future__ import annotations

from typing import Any

from sensitune.sites import Site


def make_site(name: str, shape: tuple[int, ...], **changes: Any) -> Site:
    """A matrix, or a vector where the shape has one dimension, outside the blocks; it is its own parameter."""
    kind = "vector" if len(shape) == 1 else "matrix"
    own = {"id": name, "parameter": name, "kind": kind, "block": None, "operation": name.rpartition(".")[2]}
    return Site(**{**own, "shape": shape, **changes})


def make_slices(parameter: str, names: str, shape: tuple[int, int], **changes: Any) -> tuple[Site, ...]:
    """Slices of a fused projection, one per letter, of one shape ``[out, in]``."""
    size = shape[0]
    return tuple(
        make_site(
            f"{parameter}[{name}]",
            shape,
            parameter=parameter,
            rows=(number * size, (number + 1) * size),
            operation=name,
            **changes,
        )
        for number, name in enumerate(names)
    )
