"""Where the LoRAs of a run start, on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from sensitune._tensor_file import finite_floats, load_tensor_file, save_tensor_file
from sensitune.errors import RunFolderError

_KIND: Final = "LoRA start"


@dataclass(frozen=True)
class _Content:
    """What the file holds beside the tensors: nothing."""


def save_lora_start(path: Path, start: Mapping[str, Tensor]) -> None:
    """Write one safetensors file, whole or not at all.

    Args:
        path: The file.
        start: Site id -> ``[rank, in]``.
    """
    save_tensor_file(path, start, kind=_KIND, content=_Content())


def load_lora_start(path: Path) -> dict[str, Tensor]:
    """Read what `save_lora_start` wrote.

    Args:
        path: The file.

    Returns:
        Site id -> ``[rank, in]``.

    Raises:
        RunFolderError: If there is no such file.
        AdapterFileError: If it is damaged, or another kind of file.
    """
    if not path.is_file():
        raise RunFolderError(
            f"{path} is missing, and the run's LoRAs start from it. Remove allocation.safetensors beside it, and both "
            "are made again."
        )
    return dict(load_tensor_file(path, kind=_KIND, content=_Content, rule=finite_floats)[0])
