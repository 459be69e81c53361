"""Tensors under other names than those they are stored by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch


class RenamedTensors(Mapping[str, torch.Tensor]):
    """Some of a mapping's tensors by names of their own, none of them read before it is asked for.

    Args:
        tensors: The mapping.
        names: Own name -> name in the mapping.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> None:
        self._tensors = tensors
        self._names = names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
