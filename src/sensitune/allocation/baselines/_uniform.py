"""The same module on the same operations in every block."""

from __future__ import annotations

from collections.abc import Sequence

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._cost import StructuredType, check_module
from sensitune.errors import ArgumentError
from sensitune.sites import ModelOutline, Site


def uniform_allocation(
    outline: ModelOutline,
    *,
    structured: StructuredType | None = "lora",
    rank: int = 8,
    operations: Sequence[str] | None = None,
    vectors: bool = False,
    train_tokens: bool = True,
) -> Allocation:
    """The same module on the same operations in every block; no scores needed.

    ``structured=None, vectors=True`` tunes all biases, norms and scales; ``structured=None, train_tokens=False`` trains
    the head alone.

    Args:
        outline: The model.
        structured: The module of every chosen matrix; None = none.
        rank: Its rank.
        operations: Which matrices by operation, for example ``("q", "v")``; None = every matrix.
        vectors: True = every vector is tuned whole.
        train_tokens: False = the class token and its kin stay frozen.

    Returns:
        The allocation, with ``rule="uniform"``.

    Raises:
        ArgumentError: If an operation matches no matrix, or is given without `structured`.
    """
    check_module(structured, rank)
    if operations is not None and structured is None:
        raise ArgumentError(f"`operations` chooses where modules go, so it needs `structured`. Got {operations!r}.")
    matrices = _matrices(outline, operations) if structured else []
    return Allocation(
        outline=outline,
        structured={site.id: rank for site in matrices},
        vectors=tuple(site.id for site in outline.sites if vectors and site.kind == "vector"),
        sparse={},
        structured_type=structured,
        rule="uniform",
        always_trained=tuple(outline.always_trained) if train_tokens else (),
    )


def _matrices(outline: ModelOutline, operations: Sequence[str] | None) -> list[Site]:
    matrices = [site for site in outline.sites if site.kind == "matrix"]
    known = list(dict.fromkeys(site.operation for site in matrices))
    for operation in operations or ():
        if operation not in known:
            raise ArgumentError(
                f"`operations` has '{operation}', which no matrix does. Choose from {', '.join(known)}."
            )
    return [site for site in matrices if operations is None or site.operation in operations]
