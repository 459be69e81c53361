"""From what lies in folders to the pages of the report."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensitune.allocation import Allocation
from sensitune.cli._run import comparison_row
from sensitune.cli._sweep import task_table
from sensitune.errors import ArgumentError, DataError, RunFolderError, describe
from sensitune.report import (
    Compared,
    ComparisonPage,
    ComparisonRow,
    ImageAnswers,
    Mistake,
    Page,
    SweepPage,
    write_comparison_page,
    write_page,
    write_sweep_page,
)
from sensitune.runs import Run, RunFolder, budget_ladder, images_of_test_split, stability_of
from sensitune.sweeps import SETTINGS_FILE, SweepConfig, collect
from sensitune.training import AdapterManifest, Answers

if TYPE_CHECKING:
    from PIL.Image import Image

_MISTAKES = 12
_RECORDED = ("budget", "tau", "rule", "alpha", "beta")


def open_run(path: Path) -> Run:
    """A run with the scores that it shared with others of a comparison, where they lie beside it.

    Args:
        path: Its folder.

    Returns:
        The run.
    """
    folder, shared = RunFolder.load(path), path.resolve().parent / "scores"
    own = folder.sensitivity.exists() or folder.config.allocation.method == "auto" or not shared.is_dir()
    return Run.load(path) if own else Run(folder, scores=shared)


def write_run_page(run: Run, output: Path | None = None, *, images: bool = True) -> Path:
    """Write the page of a finished run.

    Args:
        run: The run.
        output: Where to; None is ``report.html`` in its folder.
        images: Whether its most confident mistakes are shown as images.

    Returns:
        The page.

    Raises:
        RunFolderError: If the run is not finished, or places nothing, so that there is nothing to see.
    """
    folder = run.folder
    _check_finished(run)
    allocation, result = run.allocation(), run.train()
    if allocation is None:
        raise RunFolderError(
            f"{folder.path} places nothing ({run.config.method.label}), so a page has nothing to show."
        )
    facts = {"Training": f"{result.seconds:,.0f} s on {result.device}, {result.last_epoch} epochs, seed {result.seed}"}
    if (stability := stability_of(run)) is not None:
        facts["Stability"] = f"{stability}: chosen by either half of the batches too"
    answers, why_not = _answers(run, images=images)
    page = Page(
        title=f"{run.config.method.title(run.config.allocation)}: {run.config.backbone.name}",
        allocation=allocation,
        ladder=budget_ladder(run),
        sensitivity=run.known_sensitivity(),
        accuracy=result.test_accuracy_last,
        num_test_images=_num_test_images(run),
        facts=facts,
        answers=answers,
        no_answers=why_not,
        stability=None if stability is None else stability.by_site,
        epochs=[
            {"epoch": row.epoch, "train_loss": row.train_loss, "validation_accuracy": row.validation_accuracy}
            for row in result.metrics
        ],
        settings=folder.settings.read_text(encoding="utf-8"),
        command=f"sensitune view {shlex.quote(str(folder.path))}",
    )
    return write_page(output or folder.path / "report.html", page)


def _answers(run: Run, *, images: bool) -> tuple[ImageAnswers | None, str]:
    """What the run's model said of its test images, or why that cannot be told."""
    path = run.folder.training.answers
    if not path.exists():
        if run.train().test_accuracy_last is None:
            return None, "The run was not tested."
        return None, f"The run has not kept its answers. Ask again: `sensitune evaluate {run.folder.path}`."
    manifest, found = AdapterManifest.load(run.folder.training.adapter), Answers.load(path)
    places, note = found.confident_mistakes(_MISTAKES), ""
    shown: list[tuple[str, Image | None]] = [(f"test image {place + 1}", None) for place in places]
    if images:
        try:
            shown = list(images_of_test_split(run, found, places))
        except (DataError, OSError) as error:  # a page can do without
            note = f"The mistakes are shown without images: {describe(error)}"
    mistakes = [
        Mistake(
            name=name,
            label=int(found.labels[place]),
            prediction=int(found.predictions[place]),
            confidence=float(found.confidences[place]),
            image=image,
        )
        for place, (name, image) in zip(places, shown, strict=True)
    ]
    answers = ImageAnswers(
        class_names=manifest.class_names,
        labels=found.labels.tolist(),
        predictions=found.predictions.tolist(),
        mistakes=mistakes,
        note=note,
    )
    return answers, ""


def write_allocation_page(path: Path, output: Path, command: str) -> Path:
    """Write the page of an allocation file.

    Args:
        path: The file.
        output: Where to.
        command: What writes it again.

    Returns:
        The page.
    """
    return write_page(output, Page(title=path.name, allocation=Allocation.load(path), command=command))


def write_comparison(paths: Sequence[Path], output: Path, command: str) -> Path:
    """Write the page that lays runs and allocation files side by side.

    Args:
        paths: Run folders and allocation files.
        output: Where to.
        command: What writes it again.

    Returns:
        The page.

    Raises:
        ArgumentError: If one is named twice.
        RunFolderError: If a run is not finished.
    """
    if twice := [path for path, count in Counter(path.resolve() for path in paths).items() if count > 1]:
        raise ArgumentError(f"`paths` must name each run or allocation once. {twice[0]} is named twice.")
    entries = [_compared(path) for path in paths]
    titles = Counter(entry.result.method for entry in entries)
    names = [
        f"{entry.result.method} ({path.name})" if titles[entry.result.method] > 1 else entry.result.method
        for entry, path in zip(entries, paths, strict=True)
    ]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    named = [_renamed(entry, name) for entry, name in zip(entries, names, strict=True)]
    page = ComparisonPage(title=f"{len(named)} allocations side by side", entries=named, command=command)
    return write_comparison_page(output, page)


def write_sweep(folder: Path, output: Path, command: str) -> Path:
    """Write the page of a sweep, finished or not.

    Args:
        folder: Its folder.
        output: Where to.
        command: What writes it again.

    Returns:
        The page.

    Raises:
        ArgumentError: If the folder does not say what it was made from.
    """
    settings = folder / SETTINGS_FILE
    if not settings.exists():
        raise ArgumentError(
            f"{folder} has no {SETTINGS_FILE}, which says what it was made from. Write it: "
            f"`sensitune sweep FILE --output {shlex.quote(str(folder))} --table`."
        )
    result = collect(SweepConfig.from_yaml(settings), folder)
    page = SweepPage(
        title=f"Sweep: {folder.resolve().name}",
        table=task_table(result, title=folder.resolve().name),
        status=f"{len(result.runs)} of {result.num_runs} runs are trained and tested.",
        num_test_images={run.key.task: run.num_test_images for run in result.runs if run.num_test_images is not None},
        failed={str(key): why for key, why in result.failed.items()},
        settings=settings.read_text(encoding="utf-8"),
        command=command,
    )
    return write_sweep_page(output, page)


def _check_finished(run: Run) -> None:
    if not run.folder.training.result.exists():
        raise RunFolderError(f"{run.folder.path} is not finished. Finish it: `sensitune train {run.folder.path}`.")


def _num_test_images(run: Run) -> int | None:
    found: int | None = run.origin().data.get("split_sizes", {}).get("test")
    return found


def _compared(path: Path) -> Compared:
    if not path.is_dir():
        allocation = Allocation.load(path)
        recorded = {f"allocation.{name}": getattr(allocation, name) for name in _RECORDED}
        return Compared(
            result=ComparisonRow.of(allocation, method=path.stem), allocation=allocation, settings=_flat(recorded)
        )
    run = open_run(path)
    _check_finished(run)
    return Compared(
        result=comparison_row(run),
        allocation=run.allocation(),
        num_test_images=_num_test_images(run),
        settings=_flat(run.config.to_dict()),
    )


def _renamed(entry: Compared, name: str) -> Compared:
    return replace(entry, result=replace(entry.result, method=name))


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings by dotted names, in words; what is not set is left out."""
    return {name: str(value) for name, value in _leaves(settings) if value is not None}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
