"""Who else watches what is computed: tracers, compilers and transforms, which do not know nodes of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad


def _always() -> bool:
    return True


# Private names of torch; the kernels know three of them, the third in `_source`. Where one is missing, we take its
# question to be answered with yes, which leads to the portable implementation.
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
