"""``sensitune view``: a finished run, or an allocation file, as one page for the browser."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import tyro

from sensitune.allocation import Allocation
from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console, show_path
from sensitune.errors import RunFolderError
from sensitune.report import Page, write_page
from sensitune.runs import Run, budget_ladder, stability_of


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(view, arguments, command="view")


def view(paths: tyro.conf.Positional[tuple[Path, ...]], /) -> None:
    """Write a page that opens in any browser, without a network: where the parameters went, and would at other budgets.

    Args:
        paths: Run folders, after `sensitune run`, and allocation files; each gets a page of its own (report.html, or a
            file beside the allocation).
    """
    console = make_console()
    for path in paths:
        show_path(console, "page", write_run_page(Run.load(path)) if path.is_dir() else _write_allocation_page(path))


def write_run_page(run: Run) -> Path:
    """Write ``report.html`` into the folder of a finished run.

    Args:
        run: The run.

    Returns:
        The page.

    Raises:
        RunFolderError: If the run is not finished, or places nothing, so that there is nothing to see.
    """
    folder = run.folder
    if not folder.training.result.exists():
        raise RunFolderError(f"{folder.path} is not finished. Finish it: `sensitune train {folder.path}`.")
    allocation, result = run.allocation(), run.train()
    if allocation is None:
        raise RunFolderError(
            f"{folder.path} places nothing ({run.config.method.label}), so a page has nothing to show."
        )
    facts = {"Training": f"{result.seconds:,.0f} s on {result.device}, {result.last_epoch} epochs, seed {result.seed}"}
    if (stability := stability_of(run)) is not None:
        facts["Stability"] = f"{stability}: chosen by either half of the batches too"
    page = Page(
        title=f"{run.config.method.title(run.config.allocation)}: {run.config.backbone.name}",
        allocation=allocation,
        ladder=budget_ladder(run),
        sensitivity=run.known_sensitivity(),
        accuracy=result.test_accuracy_last,
        num_test_images=run.origin().data.get("split_sizes", {}).get("test"),
        facts=facts,
        epochs=[
            {"epoch": row.epoch, "train_loss": row.train_loss, "validation_accuracy": row.validation_accuracy}
            for row in result.metrics
        ],
        settings=folder.settings.read_text(encoding="utf-8"),
        command=f"sensitune view {shlex.quote(str(folder.path))}",
    )
    return write_page(folder.path / "report.html", page)


def _write_allocation_page(path: Path) -> Path:
    page = Page(title=path.name, allocation=Allocation.load(path), command=f"sensitune view {shlex.quote(str(path))}")
    return write_page(path.with_suffix(".html"), page)
