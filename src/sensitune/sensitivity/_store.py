"""Where a pass keeps its sums: in memory, or in files that the operating system maps into memory as they are used."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import Protocol

import torch

from sensitune._files import naming_failure


class Store(Protocol):
    """Makes tensors of zeros."""

    def zeros(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A new tensor, on the device if the store has a choice."""


class MemoryStore:
    """Tensors in memory, on a device of their own if asked for.

    Args:
        device: Where all of them are; None = each beside what it belongs to.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device

    def zeros(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """See `Store`."""
        return torch.zeros(shape, dtype=dtype, device=self._device or device)


class DiskStore:
    """Tensors on the CPU, each a mapped file without a name, so that nothing of it is left however the process ends.

    What is changed goes to the disk when the operating system wants the memory back. A tensor's file is gone with the
    tensor.

    Args:
        beside: The file that is going to be written from them; theirs are in its folder, which exists.
    """

    def __init__(self, beside: Path) -> None:
        self._beside = beside

    def zeros(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """See `Store`."""
        del device
        size = shape.numel() * dtype.itemsize
        if not size:
            return torch.zeros(shape, dtype=dtype)
        with naming_failure(self._beside), tempfile.TemporaryFile(dir=self._beside.parent) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, not a signal later
            else:
                file.truncate(size)
            mapped = mmap.mmap(file.fileno(), size)
        return torch.frombuffer(mapped, dtype=dtype).view(shape)
