"""Files and folders are written whole or not at all, and belong to whom the umask says, like any other file."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_LEAST_BOMB: Final = 2**28  # bytes
_BOMB_RATIO: Final = 64


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
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{_temporary_name(target)}{target.suffix}"
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    permissions = _permissions(temporary)
    try:
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
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (target.parent / _temporary_name(target) for _ in range(2))
    temporary.mkdir()
    permissions = _permissions(temporary)
    try:
        yield temporary
        for each in temporary.rglob("*"):  # libraries write private files
            each.chmod(permissions if each.is_dir() else permissions & 0o666)
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


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
    return f".{target.name}.{secrets.token_hex(4)}"


def _permissions(fresh: Path) -> int:
    """What the umask makes of a new file or folder; asking for the umask itself would change it for all threads."""
    return fresh.stat().st_mode & 0o777
