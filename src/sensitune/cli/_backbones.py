"""``sensitune backbones``: the paper's backbones by their short names."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from sensitune.backbones import PUBLISHED_BACKBONES, PublishedBackbone
from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(backbones, arguments, command="backbones")


def backbones() -> None:
    """List the published backbones that have a short name, and where their original files are.

    Weights come from timm's hub by name alone, or from the original file given as --checkpoint.
    """
    console = make_console()
    table = Table(title="Published backbones", box=box.SIMPLE_HEAD, title_style="bold", title_justify="left")
    for heading in ("name", "timm model", "pretraining", "mean / std", "licence"):
        table.add_column(heading)
    for each in PUBLISHED_BACKBONES.values():
        name = each.timm_name if each.on_hub else f"{each.timm_name.partition('.')[0]} (original file only)"
        table.add_row(each.name, name, each.pretraining, _normalisation(each), each.licence)
    console.print(table)
    for each in PUBLISHED_BACKBONES.values():
        console.print(f"{each.name:<17} {each.address}", soft_wrap=True)


def _normalisation(backbone: PublishedBackbone) -> str:
    return " / ".join(" ".join(f"{value:g}" for value in dict.fromkeys(each)) for each in (backbone.mean, backbone.std))
