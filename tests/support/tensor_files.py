"""Sensitune's own tensor files, changed in a way that safetensors does not notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sensitune._tensor_file import checksum, document_checksum

Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


def rewrite(path: Path, change: Change, *, sealed: bool = True) -> None:
    """Change tensors and document in place; with `sealed` they get new checksums."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    document = json.loads(metadata["sensitune"])
    tensors = load_file(path)
    change(tensors, document)
    if sealed:
        document["tensors"] |= {name: checksum(tensor) for name, tensor in tensors.items()}
    save_file(tensors, path, metadata=metadata | seal(json.dumps(document), sealed=sealed))


def seal(document: str, *, sealed: bool = True) -> dict[str, str]:
    """A document as it stands in a file's header."""
    checked = {"crc32": document_checksum(document)} if sealed else {}
    return {"sensitune": document} | checked
