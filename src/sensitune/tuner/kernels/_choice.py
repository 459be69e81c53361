"""Which implementation a call takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from sensitune.tuner.kernels._lean import lean
from sensitune.tuner.kernels._parts import LowRank, SparseValues
from sensitune.tuner.kernels._portable import portable


def _always() -> bool:
    return True


# The only private names of torch that are used here, looked up once. Where one is missing, we take its question to be
# answered with yes, which leads to the portable implementation.
_transforms_are_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", _always)


def plain_autograd() -> bool:
    """Whether nothing but autograd in reverse watches what is computed: no tracer, no compiler, no ``torch.func``.

    Returns:
        True where an `torch.autograd.Function` of ours may be used.
    """
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # public, but not annotated
    return not (torch.compiler.is_compiling() or tracing or _transforms_are_active() or _forward_mode_is_on())


def _forward_mode_is_on() -> bool:
    level: Any = getattr(forward_ad, "_current_level", 0)
    return bool(level >= 0)


def tuned_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    transposed: bool = False,
    sparse: SparseValues | None = None,
    low_rank: Sequence[LowRank] = (),
) -> torch.Tensor:
    """``x (W + S)ᵀ + b`` and the LoRA slices, differentiable in everything but W.

    Args:
        x: Input ``[..., in]``.
        weight: The frozen weight as stored: ``[out, in]``, or ``[in, out]`` when `transposed`.
        bias: ``[out]`` or None.
        transposed: How the weight is stored.
        sparse: The sparse correction, if there is one.
        low_rank: The LoRA slices, one element for each adapter that has any.

    Returns:
        Output ``[..., out]``, in the dtype of `x` or, under autocast, in the autocast dtype.
    """
    implementation = lean if plain_autograd() else portable
    return implementation(x, weight, bias, transposed=transposed, sparse=sparse, low_rank=low_rank)
