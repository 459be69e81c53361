"""Values on disk: named tensors and one JSON document in one safetensors file, written whole and read with care."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sensitune._files import atomic_write
from sensitune._schema import parse_json, read, to_plain
from sensitune.errors import AdapterFileError, ConfigError

_KEY = "sensitune"
T = TypeVar("T")


@dataclass(frozen=True)
class _Envelope:
    """What the document of every file says before its own content."""

    kind: str
    tensors: tuple[str, ...]


def save_tensor_file(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], *, kind: str, content: object
) -> None:
    """Write tensors and a JSON document; the file appears under its name only when it is complete.

    Args:
        path: The file to write; its folder is created.
        tensors: What to store, by name.
        kind: What the file holds, for example ``"allocation"``; `load_tensor_file` insists on the same word.
        content: A dataclass of plain values, stored in the file's header.
    """
    document = to_plain(_Envelope(kind, tuple(sorted(tensors)))) | to_plain(content)
    with atomic_write(path) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={_KEY: json.dumps(document)},
        )


def load_tensor_file(path: str | os.PathLike[str], *, kind: str, content: type[T]) -> tuple[dict[str, torch.Tensor], T]:
    """Read what `save_tensor_file` wrote.

    Args:
        path: The file to read.
        kind: The kind it was saved with.
        content: The class of what it was saved with.

    Returns:
        The tensors by name, and the content.

    Raises:
        AdapterFileError: If the file is truncated, lacks a tensor, is of another kind, or its content does not fit.
    """
    try:
        with safe_open(Path(path), framework="pt") as file:
            document = _document(path, file.metadata() or {}, kind)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise AdapterFileError(f"`{path}` is damaged and cannot be read: {error}. Make it again.") from error
    with naming_damage(path, ConfigError):
        envelope = read(_Envelope, {name: document.pop(name) for name in ("kind", "tensors") if name in document})
        found = read(content, document)
    if missing := sorted(set(envelope.tensors) - tensors.keys()):
        raise AdapterFileError(f"`{path}` is incomplete: it lacks the tensor `{missing[0]}`. Make it again.")
    return tensors, found


@contextmanager
def naming_damage(path: str | os.PathLike[str], *errors: type[Exception]) -> Iterator[None]:
    """Say which file it is where its content contradicts itself.

    Args:
        path: The file.
        errors: What the content's own checks raise.

    Yields:
        Nothing.

    Raises:
        AdapterFileError: In the place of any of them.
    """
    try:
        yield
    except errors as error:
        raise AdapterFileError(f"`{path}` is damaged: {error} Make it again.") from error


def _document(path: str | os.PathLike[str], header: Mapping[str, str], kind: str) -> dict[str, Any]:
    try:
        document = parse_json(header.get(_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"`{path}` is damaged and cannot be read: {error}. Make it again.") from error
    found = document.get("kind") if isinstance(document, dict) else None
    if found != kind:
        what = f"its kind is '{found}'" if isinstance(found, str) else "it comes from elsewhere"
        raise AdapterFileError(f"`{path}` is no Sensitune {kind} file: {what}.")
    return dict(document)
