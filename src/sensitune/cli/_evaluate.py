"""``sensitune evaluate``: a trained adapter, tested from its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console, reporting, show_path
from sensitune.runs import DeviceName, Run, RunFolder, joined_processes


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(evaluate, arguments, command="evaluate")


def evaluate(
    run: tyro.conf.Positional[Path],
    /,
    *,
    split: Literal["test", "validation", "train"] = "test",
    weights: Literal["last", "chosen"] = "last",
    device: DeviceName | None = None,
) -> None:
    """Evaluate the adapter of a run once more, from its folder and the backbone alone.

    Args:
        run: Run folder, after `sensitune train`.
        split: Which images.
        weights: Those of the last epoch, or of the epoch the validation split chose.
        device: Where it runs; the run's own setting by default.
    """
    with joined_processes(RunFolder.load(run, device=device).config.compute.device):
        console = make_console()
        with reporting(console) as reporter:
            opened = Run.load(run, device=device, reporter=reporter)
            with opened.folder.writing():
                found = opened.evaluate(split=split, weights=weights)
        console.print(f"{split} accuracy {found.accuracy:.2%} (loss {found.loss:.4f}) on {found.num_images:,} images")
        show_path(console, "evaluation", opened.folder.evaluation)
