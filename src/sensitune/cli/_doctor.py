"""``sensitune doctor``: what is installed, what is missing and how to get it, and what it can compute on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from typing import get_args

import torch

from sensitune import __version__
from sensitune._installed import Extra, Package, install_line, packages
from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(doctor, arguments, command="doctor")


def doctor() -> None:
    """Show versions, optional parts that are missing and how to get them, and devices. For bug reports too."""
    console = make_console()
    console.print(
        f"sensitune {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    console.print("\nNeeded")
    for package in packages(None):
        console.print(f"  {_line(package)}")
    console.print("\nOptional")
    for extra in get_args(Extra):
        for line in _of_extra(extra):
            console.print(f"  {line}", soft_wrap=True)
    console.print("\nDevices")
    for line in _devices():
        console.print(f"  {line}")


def _line(package: Package) -> str:
    return f"{package.name:<20} {package.found or 'missing':<16} {package.needed}".rstrip()


def _of_extra(extra: Extra) -> Iterator[str]:
    found = packages(extra)
    missing = [package.name for package in found if package.found is None]
    if missing:
        yield f"{extra:<10} lacks {', '.join(missing)}: {install_line(extra)}"
    elif old := [package for package in found if not package.is_new_enough]:
        yield f"{extra:<10} needs {old[0].name} {old[0].needed}, found {old[0].found}: {install_line(extra)} --upgrade"
    else:
        yield f"{extra:<10} {', '.join(f'{package.name} {package.found}' for package in found)}"


def _devices() -> Iterator[str]:
    yield f"cpu        {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        half = "computes in bfloat16" if native else "no bfloat16 of its own"
        yield f"cuda:{index}     {device.name}, {device.total_memory / 2**30:.0f} GiB, {half}"
    if not torch.cuda.is_available():
        yield f"cuda       none that torch {torch.__version__} can use"
    if torch.backends.mps.is_available():
        yield "mps        Apple's"
