"""Files and folders are written whole or not at all, and belong to whom the umask says, like any other file."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from sensitune.errors import ArgumentError, OutputError

_LEAST_BOMB: Final = 2**28  # bytes
_BOMB_RATIO: Final = 64
_LONGEST_NAME = 200  # bytes; file systems take 255, and a temporary name is longer than the final one
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}(?P<suffix>\.[^.]+)?")
# What torch's and safetensors' writers say of a disk that is full; torch raises nothing more special.
_REASONS = {"No space left on device": "no space left on device", "PytorchStreamWriter": "torch could not write it"}


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name only if the block succeeds.

    Args:
        path: The final name. Its folder is created if it is missing.

    Yields:
        An empty file in the same folder to write to. On any error, a full disk included, it is removed, `path`
        untouched.
    """
    target = Path(path)
    with naming_failure(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{_temporary_name(target)}{target.suffix}"
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            permissions = _permissions(temporary)
            yield temporary
            temporary.chmod(permissions)  # a library may have put a private file in its place
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that takes its name only if the block succeeds.

    Args:
        folder: The final name; a folder that has it already is replaced. The folder above is created if it is missing.

    Yields:
        An empty folder to fill. On any error it is removed and `folder` is as it was.
    """
    target = Path(folder)
    with naming_failure(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary, old = (target.parent / _temporary_name(target) for _ in range(2))
        try:
            temporary.mkdir()
            permissions = _permissions(temporary)
            yield temporary
            for each in temporary.rglob("*"):  # libraries write private files
                each.chmod(permissions if each.is_dir() else permissions & 0o666)
            if target.exists():
                os.replace(target, old)
            os.replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            if not target.exists() and old.exists():
                os.replace(old, target)
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def naming_failure(path: Path, *, whole: str | None = None) -> Iterator[None]:
    """Say in one sentence what could not be written, whoever's writer it was that failed.

    Args:
        path: What is written.
        whole: What is left all the same; None says whether `path` is still what it was.

    Yields:
        Nothing.

    Raises:
        OutputError: In the place of an error of the system's or of the writers of torch and safetensors.
        Exception: Any other, as it is.
    """
    try:
        yield
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        if whole is None:
            with suppress(OSError):
                whole = "What was there before is whole." if path.exists() else None
        raise OutputError(f"{path} could not be written: {reason}. {whole or 'Nothing of it is left.'}") from error


def _reason(error: Exception) -> str | None:
    """Why the system or a writer failed; None of any other error, and of one that says so already."""
    if isinstance(error, OSError):
        return error.strerror
    known = isinstance(error, (SafetensorError, RuntimeError))
    return next((said for mark, said in _REASONS.items() if known and mark in str(error)), None)


def remove_leftovers(folder: Path, *, of: str | None = None) -> None:
    """Remove the temporary files and folders of processes that were killed; nobody may be writing there.

    Args:
        folder: Where they lie.
        of: The name that they were to get; None removes those of every name.
    """
    for each in folder.iterdir():
        found = _TEMPORARY.fullmatch(each.name)
        if found is None or not found["name"].endswith(found["suffix"] or ""):
            continue
        if of is None or found["name"] == _cut(of):
            with suppress(OSError):
                shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()


def refuse_overwriting(output: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Make sure that a file to write is none of those that are read.

    Args:
        output: The file to write.
        inputs: Files that are read, and folders with all in them.

    Raises:
        ArgumentError: If it is one of them, under whatever name, or a folder.
    """
    target = Path(output)
    if target.is_dir():
        raise ArgumentError(f"`output` must be a file. {target} is a folder. Give it a name of its own.")
    for source in map(Path, inputs):
        if source.is_dir() and any(each.exists() and each.samefile(source) for each in target.resolve().parents):
            raise ArgumentError(f"`output` {target} lies in {source}, which is read. Write it elsewhere.")
        if source.exists() and target.exists() and target.samefile(source):
            raise ArgumentError(f"`output` {target} is read too, and would be overwritten. Give it another name.")


def apply_umask(path: str | os.PathLike[str]) -> None:
    """Give a file that a library wrote as a private one the permissions that the umask says.

    Args:
        path: The file.
    """
    target = Path(path)
    fresh = target.parent / _temporary_name(target)
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        target.chmod(_permissions(fresh))
    finally:
        fresh.unlink()


def is_bomb(packed: int, unpacked: int) -> bool:
    """Whether an archive holds so much more than its size that it is made to fill memory or disk.

    Args:
        packed: Bytes of the archive.
        unpacked: Bytes of what it holds, as it says.

    Returns:
        True from 64 times its size and 256 MiB on.
    """
    return unpacked > max(_LEAST_BOMB, _BOMB_RATIO * packed)


def _temporary_name(target: Path) -> str:
    return f".{_cut(target.name)}.{secrets.token_hex(4)}"


def _cut(name: str) -> str:
    """A name with its end alone, if it is too long to be made longer."""
    while len(os.fsencode(name)) > _LONGEST_NAME:
        name = name[1:]
    return name


def _permissions(fresh: Path) -> int:
    """What the umask makes of a new file or folder; asking for the umask itself would change it for all threads."""
    return fresh.stat().st_mode & 0o777
