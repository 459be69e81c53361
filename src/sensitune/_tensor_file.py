"""Values on disk: named tensors and one JSON document in one safetensors file, written whole and read with care."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sensitune._files import atomic_write
from sensitune.errors import AdapterFileError

_KEY = "sensitune"


def save_tensor_file(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], *, kind: str, content: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON document; the file appears under its name only when it is complete.

    Args:
        path: The file to write; its folder is created.
        tensors: What to store, by name.
        kind: What the file holds, for example ``"allocation"``; `load_tensor_file` insists on the same word.
        content: A JSON-ready document, stored in the file's header.
    """
    header = {_KEY: json.dumps({"kind": kind, "tensors": sorted(tensors), **content})}
    with atomic_write(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=header)


def load_tensor_file(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_tensor_file` wrote.

    Args:
        path: The file to read.
        kind: The kind it was saved with.

    Returns:
        The tensors by name, and the JSON document.

    Raises:
        AdapterFileError: If the file is truncated, lacks a tensor, or is of another kind.
    """
    try:
        with safe_open(Path(path), framework="pt") as file:
            content = _content(path, file.metadata() or {}, kind)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise AdapterFileError(f"`{path}` is damaged and cannot be read: {error}. Make it again.") from error
    missing = sorted(set(content.pop("tensors")) - tensors.keys())
    if missing:
        raise AdapterFileError(f"`{path}` is incomplete: it lacks the tensor `{missing[0]}`. Make it again.")
    return tensors, content


def _content(path: str | os.PathLike[str], header: Mapping[str, str], kind: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(header[_KEY]) if _KEY in header else {}
    found = content.pop("kind", None)
    if found != kind:
        what = f"its kind is '{found}'" if found else "it comes from elsewhere"
        raise AdapterFileError(f"`{path}` is no Sensitune {kind} file: {what}.")
    return content
