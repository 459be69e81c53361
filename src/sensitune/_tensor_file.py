"""Values on disk: named tensors and one JSON document in one safetensors file, written whole and read with care.

Every tensor has a checksum in the document, and the document one beside it. They are CRC-32, against accidents alone:
whoever changes a file on purpose can change its checksums too, and SHA-256 takes more than twice as long.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sensitune._files import atomic_write
from sensitune._schema import parse_json, read, shorten, show_name, show_reason, to_plain
from sensitune.errors import AdapterFileError, ConfigError

_DOCUMENT: Final = "sensitune"
CHECKSUM_KEY: Final = "crc32"
T = TypeVar("T")
Rule: TypeAlias = Callable[[str, torch.Tensor], str | None]
"""What is wrong with a tensor of some name, as it reads after its name; None if nothing is."""


@dataclass(frozen=True)
class _Envelope:
    """What the document of every file says before its own content: what it is, and each tensor's checksum."""

    kind: str
    tensors: Mapping[str, str]


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
    stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
    envelope = _Envelope(kind, {name: checksum(stored[name]) for name in sorted(stored)})
    document = json.dumps(to_plain(envelope) | to_plain(content))
    with atomic_write(path) as temporary:
        save_file(stored, temporary, metadata={_DOCUMENT: document, CHECKSUM_KEY: document_checksum(document)})
        sort_metadata(temporary)


def sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in order, which their writer shuffles: equal content is to be equal bytes.

    Args:
        path: A file that was just written.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        if len(text) <= size:  # as the writer's, so it always is; the header ends in spaces
            file.seek(8)
            file.write(text.ljust(size))


def load_tensor_file(
    path: str | os.PathLike[str], *, kind: str, content: type[T], rule: Rule, lazy: bool = False
) -> tuple[Mapping[str, torch.Tensor], T]:
    """Read what `save_tensor_file` wrote.

    Args:
        path: The file to read.
        kind: The kind it was saved with.
        content: The class of what it was saved with.
        rule: What a tensor must be, beside what was written.
        lazy: Whether the tensors stay in the file, each read and checked when it is asked for.

    Returns:
        The tensors by name, and the content.

    Raises:
        AdapterFileError: If the file is truncated, changed, lacks a tensor, is of another kind, or its content or a
            tensor does not fit; of a tensor that stays in the file, when it is asked for.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise AdapterFileError(f"`{path}` is no file.")
    try:
        with safe_open(Path(path), framework="pt") as file:
            document = _document(path, file.metadata() or {}, kind)
            names = set(file.keys())
    except SafetensorError as error:
        raise AdapterFileError(_unreadable(path, error)) from error
    with naming_damage(path, ConfigError):
        envelope = read(_Envelope, {name: document.pop(name) for name in ("kind", "tensors") if name in document})
        found = read(content, document)
    if missing := sorted(envelope.tensors.keys() - names):
        raise AdapterFileError(f"`{path}` is incomplete: it lacks the tensor `{show_name(missing[0])}`. Make it again.")
    if unknown := sorted(names - envelope.tensors.keys()):
        raise AdapterFileError(
            f"`{path}` is damaged: it holds a tensor `{show_name(unknown[0])}` too many. Make it again."
        )
    tensors = _StoredTensors(Path(path), envelope.tensors, rule)
    return (tensors if lazy else tensors.read_all()), found


class _StoredTensors(Mapping[str, torch.Tensor]):
    """The tensors of a file, each mapped into memory when it is asked for, and checked when it is for the first time.

    A mapping lives as long as the tensor that came from it. So the memory in use is that of the tensors in hand, not of
    the file, however much of it has been read. The file must stay as it is for as long as this is used.
    """

    def __init__(self, path: Path, checksums: Mapping[str, str], rule: Rule) -> None:
        self._path = path
        self._checksums = checksums
        self._rule = rule
        self._checked: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._checksums:
            raise KeyError(name)
        try:
            with safe_open(self._path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise AdapterFileError(
                f"The tensor `{name}` can no longer be read from `{self._path}`: {error}. Leave the file in place "
                "while what was loaded with `lazy=True` is in use, or load it without."
            ) from error
        if name not in self._checked:
            self._check(name, tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._checksums)

    def __len__(self) -> int:
        return len(self._checksums)

    def read_all(self) -> dict[str, torch.Tensor]:
        """All of them, from one mapping."""
        try:
            with safe_open(self._path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in self}
        except SafetensorError as error:
            raise AdapterFileError(_unreadable(self._path, error)) from error
        for name, tensor in tensors.items():
            self._check(name, tensor)
        return tensors

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        found = None if checksum(tensor) == self._checksums[name] else "is not what was written (by its checksum)"
        if complaint := found or self._rule(name, tensor):
            raise AdapterFileError(
                f"`{self._path}` is damaged: the tensor `{show_name(name)}` {complaint}. Make it again."
            )
        self._checked.add(name)


def checksum(tensor: torch.Tensor) -> str:
    """CRC-32 of a tensor's type, shape and bytes.

    Args:
        tensor: Contiguous, on the CPU.

    Returns:
        8 hexadecimal digits.
    """
    start = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    return f"{zlib.crc32(tensor.detach().reshape(-1).view(torch.uint8).numpy().data, start):08x}"


def document_checksum(document: str) -> str:
    """CRC-32 of a document.

    Args:
        document: Its text.

    Returns:
        8 hexadecimal digits.
    """
    return f"{zlib.crc32(document.encode('utf-8', 'surrogatepass')):08x}"


def finite_floats(name: str, tensor: torch.Tensor) -> str | None:
    """The rule that a tensor holds finite numbers in floating point.

    Args:
        name: Its name.
        tensor: The tensor.

    Returns:
        What is wrong with it, as it reads after its name; None if nothing is.
    """
    if not tensor.is_floating_point():
        return f"must hold floating-point numbers, not {str(tensor.dtype).removeprefix('torch.')}"
    # Smallest and largest show both a NaN and an infinity, in one pass without a copy.
    if tensor.numel() and not all(each.isfinite() for each in tensor.aminmax()):
        return "holds a value that is not finite"
    return None


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
    text = header.get(_DOCUMENT, "{}")
    try:
        document = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(_unreadable(path, error)) from error
    found = document.get("kind") if isinstance(document, dict) else None
    if found != kind:
        what = f"its kind is {shorten(found)}" if isinstance(found, str) else "it comes from elsewhere"
        raise AdapterFileError(f"`{path}` is no Sensitune {kind} file: {what}.")
    if header.get(CHECKSUM_KEY) != document_checksum(text):
        raise AdapterFileError(
            f"`{path}` is damaged: its header is not what was written (by its checksum). Make it again."
        )
    return dict(document)


def _unreadable(path: str | os.PathLike[str], error: Exception) -> str:
    return f"`{path}` is damaged and cannot be read: {show_reason(error)}. Make it again."
