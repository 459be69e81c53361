"""``sensitune view``: runs, allocation files, comparisons and sweeps as pages for the browser."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import tyro

from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console, show_path
from sensitune.cli._pages import (
    open_run,
    write_allocation_page,
    write_comparison,
    write_run_page,
    write_sweep,
)
from sensitune.errors import ArgumentError
from sensitune.report import write_node_data
from sensitune.runs import graph_nodes


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(view, arguments, command="view")


def view(
    paths: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    output: Path | None = None,
    images: bool = True,
    model_explorer: Path | None = None,
) -> None:
    """Write a page that opens in any browser, without a network: where the parameters went, and would at other budgets.

    Several runs or allocations are laid side by side, with what differs; a sweep's folder becomes its table, with
    intervals, and accuracy against parameters.

    Args:
        paths: Run folders, after `sensitune run`, and allocation files; or the folder of a comparison's runs, or of a
            sweep.
        output: The page. Default: report.html of a run or sweep, comparison.html in the folder that holds all that are
            compared, or a file beside the allocation.
        images: Show a run's most confident mistakes as small pictures; without, a page holds none of the data's images.

        model_explorer: Also write, as JSON, how much is trained at each node of the model's graph, for Google's Model
            Explorer; of one run.

    Raises:
        ArgumentError: If no path is given, one is given twice, or a folder holds nothing to see.
    """
    if not paths:
        raise ArgumentError("`paths` must name at least one run folder, allocation file or sweep. Got none.")
    if model_explorer is not None:
        _check_graph(paths, model_explorer)
    console = make_console()
    show_path(console, "page", _write(paths, output, images, f"sensitune view {shlex.join(map(str, paths))}"))
    if model_explorer is not None:
        run = open_run(paths[0])
        allocation = run.allocation()
        assert allocation is not None  # it has a page
        show_path(console, "node data", write_node_data(model_explorer, allocation, graph_nodes(run)))


def _check_graph(paths: Sequence[Path], file: Path) -> None:
    if len(paths) > 1 or not (paths[0] / "run.yaml").is_file():
        raise ArgumentError("`--model-explorer` needs one run folder alone: the graph is that of its backbone.")
    if file.suffix != ".json":
        raise ArgumentError(f"`--model-explorer` must name a file that ends in .json. Got {os.fspath(file)!r}.")


def _write(paths: Sequence[Path], output: Path | None, images: bool, command: str) -> Path:
    if output is not None and output.suffix != ".html":
        raise ArgumentError(f"`output` must end in .html. Got {os.fspath(output)!r}.")
    if len(paths) > 1:
        parents = os.path.commonpath([path.resolve().parent for path in paths])
        return write_comparison(paths, output or _shortest(Path(parents)) / "comparison.html", command)
    path = paths[0]
    if not path.is_dir():
        return write_allocation_page(path, output or path.with_suffix(".html"), command)
    if (path / "runs").is_dir():
        return write_sweep(path, output or path / "report.html", command)
    runs = [each for each in sorted(path.iterdir()) if (each / "run.yaml").is_file()]
    if (path / "run.yaml").is_file() or not runs:
        return write_run_page(open_run(path), output, images=images)
    if len(runs) == 1:
        raise ArgumentError(f"{path} holds a single run. View that: `sensitune view {shlex.quote(str(runs[0]))}`.")
    return write_comparison(runs, output or path / "comparison.html", command)


def _shortest(folder: Path) -> Path:
    """As seen from here, where it lies below: paths are shown as they were given."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
