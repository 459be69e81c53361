"""``sensitune export``: a trained adapter as plain LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from sensitune._lock import one_writer
from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console, reporting, show_path
from sensitune.runs import DeviceName
from sensitune.runs import export as export_adapter


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(export, arguments, command="export")


def export(
    adapter: tyro.conf.Positional[Path],
    /,
    *,
    output: Path,
    format: Literal["lora"] = "lora",
    uniform_rank: bool = False,
    allow_dropping: bool = False,
    checkpoint: Path | None = None,
    device: DeviceName | None = None,
) -> None:
    """Write an adapter folder that PEFT, trainers and servers load without Sensitune, and that does exactly the same.

    Args:
        adapter: Adapter folder of a run: RUN/adapter or RUN/adapter_chosen.
        output: Folder to write.
        format: What to write: PEFT's LoRA.
        uniform_rank: Fill all LoRAs up with zeros to the highest rank, for servers that read one rank alone.
        allow_dropping: Leave out what no LoRA does (biases, norms, the class token, Adapters) in the place of refusing,
            and say what that costs in accuracy on the run's test split.
        checkpoint: The backbone's weight file, if it has moved or the adapter has left its run folder.
        device: Where the accuracy is measured; the run's own setting by default.
    """
    console = make_console()
    with one_writer(output, file=True), reporting(console) as reporter:
        found = export_adapter(
            adapter,
            output,
            checkpoint=checkpoint,
            uniform_rank=uniform_rank,
            allow_dropping=allow_dropping,
            device=device,
            reporter=reporter,
        )
    lora = found.lora
    low, high = min(lora.ranks.values()), max(lora.ranks.values())
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    console.print(f"{len(lora.ranks)} LoRAs of {ranks}, {lora.lora_params:,} values")
    if lora.saved_modules:
        console.print(f"trained whole, in modules_to_save: {', '.join(lora.saved_modules)}", markup=False)
    for site, reason in lora.dropped.items():
        console.print(f"left out: {site} ({reason})", markup=False)
    if found.not_measured:
        console.print(f"accuracy without them: not measured. {found.not_measured}", markup=False)
    elif found.accuracy_before is not None and found.accuracy_after is not None:
        console.print(f"test accuracy: {found.accuracy_before:.2%} before, {found.accuracy_after:.2%} without them")
    show_path(console, "plain LoRA", lora.folder)
