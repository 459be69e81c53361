"""Tensors that stay on the disk: each is mapped into memory when it is asked for and forgotten after use."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sensitune.errors import AdapterFileError


class MappedScores(Mapping[str, torch.Tensor]):
    """The tensors of a safetensors file, each from a mapping of its own.

    A mapping lives as long as the tensor that came from it. So the memory in use is that of the tensors in hand, not of
    the file, however much of it has been read. The file must stay as it is for as long as this is used.

    Args:
        path: The file.
        names: Names of the parameters.
        prefix: What their names in the file begin with.
    """

    def __init__(self, path: str | os.PathLike[str], names: Sequence[str], *, prefix: str = "") -> None:
        self._path = Path(path)
        self._names = {name: prefix + name for name in names}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        try:
            with safe_open(self._path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(self._names[name])
        except (SafetensorError, OSError) as error:
            raise AdapterFileError(
                f"The tensor `{self._names[name]}` can no longer be read from `{self._path}`: {error}. Leave the file "
                "in place while a sensitivity that was loaded with `lazy=True` is in use, or load it without."
            ) from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
