"""``sensitune sites``: a model as the method sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sensitune._text import visible
from sensitune.backbones import BackboneSpec, load_backbone
from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console
from sensitune.sites import ModelOutline, Site, outline_model


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(sites, arguments, command="sites")


def sites(
    model: tyro.conf.Positional[str],
    /,
    *,
    checkpoint: Path | None = None,
    image_size: int | None = None,
    num_blocks: int | None = None,
    head: tuple[str, ...] | None = None,
    num_classes: int = 10,
    every: bool = False,
) -> None:
    """Show what of a model can be tuned, what is always trained, and what stays frozen and why. Needs no weights.

    Args:
        model: Name of a timm model, or dinov2_vit_s14_focus, or a transformers folder or repository.
        checkpoint: Local weight file; random weights by default, which have the same sites.
        image_size: Side of the square input in pixels; None is the model's own.
        num_blocks: Keep only the first blocks of a transformer.
        head: Full names of the modules that form the head; found by default.
        num_classes: Outputs of the new head.
        every: List every site instead of one line per operation and shape.
    """
    spec = BackboneSpec(
        model,
        checkpoint=None if checkpoint is None else str(checkpoint),
        pretrained=checkpoint is not None,
        image_size=image_size,
        num_blocks=num_blocks,
        head=head,
    )
    show_outline(make_console(), outline_model(load_backbone(spec, num_classes=num_classes).model), every=every)


def show_outline(console: Console, outline: ModelOutline, *, every: bool) -> None:
    """Print an outline as tables.

    Args:
        console: Where to.
        outline: The model.
        every: One line per site instead of per operation and shape.
    """
    ranked = sum(site.numel for site in outline.sites)
    rows = _site_rows(outline.sites) if every else _operation_rows(outline.sites)
    headings = ("site" if every else "operation", "kind", "shape", "sites", "parameters")
    console.print(_table(f"Ranked: {len(outline.sites)} sites, {ranked:,} parameters", headings, rows))
    tokens = [(name, _shape(shape)) for name, shape in outline.always_trained.items()]
    head = [(name, f"{outline.head_params:,} parameters in the head, not counted") for name in outline.head]
    console.print(_table("Always trained", ("parameter or module", "shape or size"), [*tokens, *head]))
    console.print(_table("Frozen", ("parameter", "why"), outline.frozen.items()))
    console.print(f"{outline.backbone_params:,} parameters in the backbone, the head not counted.")


def _operation_rows(sites: Iterable[Site]) -> list[tuple[str, ...]]:
    alike: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for site in sites:
        alike.setdefault((site.operation, site.kind, site.shape), []).append(site.numel)
    return [
        (operation, kind, _shape(shape), str(len(sizes)), f"{sum(sizes):,}")
        for (operation, kind, shape), sizes in alike.items()
    ]


def _site_rows(sites: Iterable[Site]) -> list[tuple[str, ...]]:
    return [(site.id, site.kind, _shape(site.shape), "1", f"{site.numel:,}") for site in sites]


def _shape(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=Text(title, style="bold"), box=box.SIMPLE_HEAD, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in {"sites", "parameters"} else "left")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))  # site ids hold brackets, which are no markup
    return table
