"""``sensitune data``: get a benchmark onto the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console, reporting, show_path, warn
from sensitune.data import VTAB_TASKS, fetch_vtab1k, load_vtab1k, prepare_vtab1k, unpack_vtab1k, vtab_task
from sensitune.errors import ArgumentError, DataError


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(data, arguments, command="data")


def data(
    benchmark: tyro.conf.Positional[Literal["vtab1k"]],
    /,
    *,
    source: Annotated[Literal["tfds", "hub", "zip"], tyro.conf.arg(name="from")] = "tfds",
    archive: Path | None = None,
    tasks: tuple[str, ...] = (),
    output: Path = Path("data/vtab-1k"),
    tfds_folder: Path | None = None,
) -> None:
    """Prepare VTAB-1k, or go on with a preparation that was interrupted, and check its sizes.

    Args:
        benchmark: What to prepare.
        source: tfds makes it by the official construction, as PNG, from 16 large downloads; hub fetches the usual
            conversion, whose small images are JPEG; zip unpacks a file that you have.
        archive: With --from zip: the file.
        tasks: Only these tasks; all 19 by default.
        output: Folder of the task folders.
        tfds_folder: Where TensorFlow Datasets keeps its data; its own default otherwise.

    Raises:
        ArgumentError: If an archive is given for another source, or none for this one.
    """
    if (archive is not None) != (source == "zip"):
        raise ArgumentError("`--archive` is the file of `--from zip`. Give both or neither.")
    names = [vtab_task(name).name for name in tasks] or list(VTAB_TASKS)
    console = make_console()
    with reporting(console, always=True) as reporter:
        if source != "tfds":
            reporter.stage("Unpacking VTAB-1k")
            file = fetch_vtab1k() if archive is None else archive
            unpack_vtab1k(file, output, progress=lambda _, done, total: reporter.step(done, total))

        def make(name: str) -> None:
            if source == "tfds":
                reporter.stage(f"Preparing {name}")
                prepare_vtab1k(
                    name, output, tfds_folder=tfds_folder, progress=lambda _, done, total: reporter.step(done, total)
                )
            load_vtab1k(name, root=output)
            load_vtab1k(name, root=output, train_on_validation=True)

        _each(names, make, console)
    show_path(console, f"{len(names)} tasks of VTAB-1k", output)


def _each(names: Sequence[str], make: Callable[[str], None], console: Console) -> None:
    """One task that cannot be made must not keep the others from it."""
    failed = []
    for name in names:
        try:
            make(name)
            console.print(f"{name}: complete")
        except DataError as error:
            failed.append(name)
            warn(f"error: {name}: {error}")
    if failed:
        raise DataError(f"{len(failed)} of {len(names)} tasks are not complete: {', '.join(failed)}. See above.")
