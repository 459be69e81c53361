"""One writer at a time: a folder, or a file to write, is held by one process of this machine for as long as it works.

What is locked is a hidden file, ``.lock`` in a folder and ``.NAME.lock`` beside a file, which says who holds it and is
removed at the end. The lock is the operating system's and ends with its process, however that ends. It is of the kind
(POSIX) that a network file system passes on to its server, so that other machines heed it; where one is mounted so that
it does not, a warning says so.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sensitune._files import naming_failure, remove_leftovers
from sensitune.errors import RunFolderError

if sys.platform != "win32":  # which has no such locks
    import fcntl

_LOGGER = logging.getLogger(__name__)
_FOLDER_LOCK = ".lock"
_MOUNTS = Path("/proc/self/mountinfo")
_KEPT_TO_ONESELF = {"nolock", "local_lock=all", "local_lock=posix", "localflock"}
"""How NFS and Lustre are mounted where a machine keeps its locks to itself."""
PATIENCE = 3.0
"""Seconds to wait for a lock: the worker processes of one that was killed take a moment to notice."""


@dataclass
class _Held:
    thread: int
    depth: int = 1


_HELD: dict[str, _Held] = {}
_GUARD = threading.Lock()


@contextmanager
def one_writer(
    path: str | os.PathLike[str], *, file: bool = False, within: Sequence[str] | None = None
) -> Iterator[None]:
    """Work in a folder, or on a file, as the only process that does; within one thread as often as it likes.

    What killed processes have left there is removed: their temporary files, but for folders below that somebody else
    works in. A folder that was made for it and is still empty at the end is removed too.

    Args:
        path: The folder, made if it is missing; or the file.
        file: Whether it is a file.
        within: Folders below to remove leftovers from, where others are none of ours; None takes all.

    Yields:
        Nothing.

    Raises:
        RunFolderError: If another process, or another thread, works there; it says which.
        OutputError: If nothing can be written there.
    """
    target = Path(path)
    place = Path(os.path.realpath(target.parent), target.name) if file else Path(os.path.realpath(target))
    with _GUARD:
        held = _HELD.get(str(place))
        if held is not None and held.thread != threading.get_ident():
            raise RunFolderError(_taken(target, f"another thread of this process, {os.getpid()},"))
        if held is not None:
            held.depth += 1
        else:
            _HELD[str(place)] = _Held(threading.get_ident())
    try:
        if held is not None:
            yield
            return
        with _made(target.parent if file else target), _locked(target, place, file=file):
            tidy = partial(remove_leftovers, place.parent, of=place.name) if file else partial(_tidy, place, within)
            tidy()
            try:
                yield
            except BaseException:
                tidy()  # worker processes that had to be ended with it leave something too
                raise
    finally:
        with _GUARD:
            _HELD[str(place)].depth -= 1
            if not _HELD[str(place)].depth:
                del _HELD[str(place)]


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder that exists; it goes again, and those above it that were made with it, if nothing came into it."""
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        with naming_failure(folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in missing:
            with suppress(OSError):
                each.rmdir()


@contextmanager
def _locked(target: Path, place: Path, *, file: bool) -> Iterator[None]:
    lock = place.parent / f".{place.name}{_FOLDER_LOCK}" if file else place / _FOLDER_LOCK
    descriptor = _acquire(target, lock)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                lock.unlink()  # before it is let go, or it might be the next one's
            os.close(descriptor)


def _acquire(target: Path, lock: Path) -> int | None:
    """Open and lock the file; None where there are no locks."""
    if sys.platform == "win32":
        return None
    until = time.monotonic() + PATIENCE
    while True:
        with naming_failure(target):
            descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows both
            holder = _read(descriptor)
            os.close(descriptor)
            if time.monotonic() > until:
                raise RunFolderError(_taken(target, holder)) from None
            time.sleep(0.05)
        except OSError as error:
            os.close(descriptor)
            lock.unlink(missing_ok=True)
            _LOGGER.warning(
                "%s cannot be locked on this file system (%s). Make sure that no other command works there.",
                target,
                error.strerror,
            )
            return None
        else:
            if _is_same(descriptor, lock):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
                if (option := _own_locks(lock)) is not None:
                    _LOGGER.warning(
                        "%s lies on a network file system that is mounted with `%s`: other machines do not see that "
                        "this one works there. Make sure that no command works there from another machine.",
                        target,
                        option,
                    )
                return descriptor
            os.close(descriptor)  # its holder removed it in the meantime


def _own_locks(lock: Path) -> str | None:
    """The mount option that keeps a file's locks from other machines; None if they see them, as far as is known."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return None
    device = os.stat(lock).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for fields in (line.split() for line in lines):
        if len(fields) > 5 and fields[2] == number:
            options = ",".join([fields[5], fields[-1]]).split(",")
            return next((each for each in options if each in _KEPT_TO_ONESELF), None)
    return None


def _is_same(descriptor: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(lock))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> str:
    said = os.pread(descriptor, 300, 0).decode("utf-8", "replace")
    return said if said.isprintable() and said else "another process"


def _taken(target: Path, holder: str) -> str:
    return f"{target} is being worked on by {holder}. Wait until it has ended, or choose another place."


def _tidy(folder: Path, within: Sequence[str] | None = None) -> None:
    remove_leftovers(folder)
    for each in folder.iterdir() if within is None else map(folder.joinpath, within):
        if each.is_dir() and not each.is_symlink():
            _tidy_if_free(each)


def _tidy_if_free(folder: Path) -> None:
    """Of a folder that somebody worked in, he works still, or was killed."""
    lock = folder / _FOLDER_LOCK
    if sys.platform == "win32" or not lock.exists():
        _tidy(folder)
        return
    if str(folder) in _HELD:
        return
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.unlink()
        _tidy(folder)
    except OSError:
        return
    finally:
        os.close(descriptor)
