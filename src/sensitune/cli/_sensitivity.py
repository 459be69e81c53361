"""``sensitune sensitivity``: the first stage alone."""

from __future__ import annotations

from collections.abc import Sequence

from sensitune.cli._arguments import asked_run
from sensitune.cli._console import make_console, reporting, show_path
from sensitune.runs import Run, RunFolder, joined_processes

DESCRIPTION = """Score every parameter of a pretrained model by how much it matters for your images.

Makes the run folder; `sensitune allocate` and `sensitune train` go on from there."""


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    with (
        asked_run(arguments, command="sensitivity", description=DESCRIPTION) as asked,
        joined_processes(asked.config.compute.device),
    ):
        console = make_console()
        with RunFolder(asked.folder, asked.config).writing(), reporting(console) as reporter:
            run = Run.open(asked.folder, asked.config, reporter=reporter)
            sensitivity = run.sensitivity()
        scored = sum(site.numel for site in sensitivity.sites)
        console.print(f"{scored:,} parameters at {len(sensitivity.sites)} sites scored.")
        show_path(console, "sensitivity", run.folder.sensitivity)
