"""Several processes on one run: how they meet, and what must be the same in all of them."""

from __future__ import annotations

import logging
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

from sensitune._files import naming_failure
from sensitune._processes import Processes, is_others_end, launched_count
from sensitune.errors import ArgumentError, ProcessError, RunFolderError
from sensitune.training import check_launcher, resolve_device

PACKAGES: Final = ("sensitune", "torch", "torchvision", "timm", "peft", "transformers", "accelerate", "datasets")
"""What a run's numbers may depend on."""
# The first process may compute for long while the others wait; one that is gone is noticed at once all the same.
_WAIT = timedelta(hours=12)
_SEEN_WITHIN = 45.0  # seconds; an NFS client may remember for half a minute that a file was not there


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Meet the other processes that a launcher (torchrun, ``accelerate launch``, Slurm's srun) has started.

    Each gets a GPU of its own machine, or the CPU. All but the first are quiet: no warnings, no log.

    Args:
        device: As for `resolve_device`.

    Yields:
        The processes; this one alone if no launcher started it, and those it has met already.

    Raises:
        ArgumentError: If the launcher asks for what is not supported, the device is none for several processes, or
            there are more processes than GPUs.
        ProcessError: If another process is gone.
    """
    check_launcher()
    met = Processes.found().count > 1
    if launched_count() == 1 and not met:
        yield Processes()
        return
    try:
        if not met:
            _meet(torch.device("cpu") if device == "cpu" else resolve_device(device))
        processes = Processes.found()
        with _quiet(not processes.is_first):
            yield processes
            processes.gather(None)
        if not met:
            _part()
    except Exception as error:
        if not is_others_end(error):
            raise
        raise ProcessError(
            f"Another of the {launched_count()} processes of this command is gone: it was killed, most often for want "
            "of memory. The same command goes on where it stopped."
        ) from error


def _meet(place: torch.device) -> None:
    if place.type not in {"cpu", "cuda"}:
        raise ArgumentError(f"`device` must be 'cpu' or 'cuda' for several processes. Got {place.type!r}.")
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    if place.type == "cuda" and local.isdecimal() and int(local) > torch.cuda.device_count():
        raise ArgumentError(
            f"{local} processes were started on {platform.node()}, which has {torch.cuda.device_count()} GPUs. Start "
            "one for each GPU, or use `--device cpu`."
        )
    from accelerate import PartialState

    with warnings.catch_warnings():  # of the number of threads, which it then sets
        warnings.simplefilter("ignore")
        PartialState(cpu=place.type == "cpu", timeout=_WAIT)


def _part() -> None:
    from accelerate.state import AcceleratorState

    dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)  # it would believe in the group that is gone


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    if not quiet:
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def surroundings() -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def check_processes(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make sure that all processes are of one run: the same versions, the same settings, the same folder.

    Args:
        folder: The run's folder.
        settings: The run's.

    Raises:
        ProcessError: If they differ.
        RunFolderError: If a process does not see the folder that the first one writes to.
    """
    processes = Processes.found()
    if processes.count == 1:
        return
    mine = (platform.node(), surroundings(), _flat(settings))
    found = processes.gather(mine)
    check_versions([(f"Process {rank} on {node}", versions) for rank, (node, versions, _) in enumerate(found)])
    for rank, (_, _, theirs) in enumerate(found):
        for name, value in found[0][2].items():
            if theirs.get(name) != value:
                raise ProcessError(
                    f"`{name}` is {value!r} in process 0 and {theirs.get(name)!r} in process {rank}. Start every "
                    "process with the same settings."
                )
    _check_seen(folder, processes, [node for node, _, _ in found])


def check_versions(found: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Make sure that workers compute with the same versions.

    Args:
        found: Who, and what `surroundings` says there.

    Raises:
        ProcessError: If one has another version than the first.
    """
    first, expected = found[0]
    for who, versions in found[1:]:
        for name, wanted in expected.items():
            if versions.get(name) != wanted:
                raise ProcessError(
                    f"{who} has {name} {versions.get(name)}, and {first} has {wanted}. Install the same versions "
                    "everywhere."
                )


def _check_seen(folder: Path, processes: Processes, nodes: Sequence[str]) -> None:
    """Have the first process write a note and the others look for it."""
    note = processes.first(lambda: _write_note(folder))
    there = _appears(note)
    seen = processes.gather(there)
    if processes.is_first:
        note.unlink(missing_ok=True)
    if not all(seen):
        rank = seen.index(False)
        raise RunFolderError(
            f"Process {rank} on {nodes[rank]} does not see {folder}, where process 0 on {nodes[0]} writes. Put the "
            "run's folder on storage that every node sees under the same path."
        )


def _write_note(folder: Path) -> Path:
    path = folder.absolute() / f".meeting.{os.urandom(4).hex()}"  # named like what is removed as a leftover
    with naming_failure(folder):
        path.touch()
    return path


def _appears(path: Path) -> bool:
    until = time.monotonic() + _SEEN_WITHIN
    while not path.exists():
        if time.monotonic() > until:
            return False
        with suppress(OSError):
            os.listdir(path.parent)  # has an NFS client ask again
        time.sleep(0.2)
    return True


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{where}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found
