"""``sensitune merge``: one plain checkpoint from an adapter and its backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro

from sensitune._lock import one_writer
from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console, show_path
from sensitune.runs import merge as merge_adapter


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(merge, arguments, command="merge")


def merge(adapter: tyro.conf.Positional[Path], /, *, output: Path, checkpoint: Path | None = None) -> None:
    """Fold an adapter into its backbone and write a plain checkpoint, head included.

    Args:
        adapter: Adapter folder of a run: RUN/adapter or RUN/adapter_chosen.
        output: File to write; must end in .safetensors. Of a model of transformers: a new folder.
        checkpoint: The backbone's weight file or folder, if it has moved or the adapter has left its run folder.
    """
    with one_writer(output, file=True):
        show_path(make_console(), "merged checkpoint", merge_adapter(adapter, output, checkpoint=checkpoint))
