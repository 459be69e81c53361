"""Where and in which arithmetic a model runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from sensitune.errors import ArgumentError
from sensitune.training._recipe import Precision


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device a name stands for, checked to be there.

    Args:
        device: ``"auto"`` (CUDA, else Apple's MPS, else the CPU), ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Returns:
        The device.

    Raises:
        ArgumentError: If the name is unknown or this machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if str(device) == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    kind = str(device).partition(":")[0]
    if kind not in available:
        raise ArgumentError(f"`device` must be 'auto', 'cpu', 'cuda' or 'mps'. Got {str(device)!r}.")
    if not available[kind]:
        raise ArgumentError(f"`device` {kind!r} is not available on this machine. Use 'auto' or 'cpu'.")
    return torch.device(device)


def resolve_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The forward pass's number format on a device.

    Args:
        precision: ``"auto"`` is bfloat16 on CUDA hardware that computes in it natively, float32 elsewhere.
        device: Where the model runs.

    Returns:
        ``torch.float32`` or ``torch.bfloat16``.

    Raises:
        ArgumentError: If bfloat16 is asked for on CUDA hardware without it.
    """
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" and device.type == "cuda" and not native:
        raise ArgumentError("`precision='bfloat16'` needs a GPU that computes in bfloat16. Use 'float32' or 'auto'.")
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and native) else torch.float32


def check_precision(precision: Precision, device: str | torch.device) -> None:
    """Make sure that a device is there and computes in a number format.

    Args:
        precision: As for `resolve_dtype`.
        device: As for `resolve_device`.

    Raises:
        ArgumentError: If it is not, or does not.
    """
    resolve_dtype(precision, resolve_device(device))


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """The forward pass's context: mixed precision below float32, nothing at float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
