"""``sensitune sweep``: tasks × methods × settings × seeds, to the field's table."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import tyro
from rich.console import Console

from sensitune._files import atomic_write
from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console, show_path, warn
from sensitune.errors import ArgumentError, SweepError
from sensitune.report import TableRow, TaskTable
from sensitune.runs import DeviceName
from sensitune.sweeps import (
    SETTINGS_FILE,
    EngineName,
    EngineSettings,
    JobOutcome,
    RunKey,
    SweepConfig,
    SweepResult,
    collect,
    planned_runs,
    run_sweep,
    sweeping,
)


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(sweep, arguments, command="sweep")


def sweep(
    config: tyro.conf.Positional[Path],
    /,
    *,
    output: Path | None = None,
    root: str | None = None,
    engine: EngineName = "local",
    workers: int | None = None,
    address: str | None = None,
    cpus_per_run: int = 1,
    gpus_per_run: float | None = None,
    minutes: int = EngineSettings.minutes,
    sbatch: tuple[str, ...] = (),
    device: DeviceName | None = None,
    plan: bool = False,
    table: bool = False,
) -> None:
    """Run a file of recipes/, or one like it: choose settings on the validation split, retrain, test once, tabulate.

    The same command goes on where it stopped; a run that is finished is never repeated.

    Args:
        config: The sweep's YAML file.
        output: Folder for everything that is written. Default: runs/sweeps/NAME of the file.
        root: Folder of the benchmark's data, such as data/vtab-1k.
        engine: local runs processes on this machine, ray a Ray cluster (install sensitune[ray]), slurm array jobs
            (install sensitune[slurm]).
        workers: Runs at a time. Default: one on this machine, as many as there is room for on a cluster.
        address: With ray: the cluster, as host:port or auto; a local one is started otherwise.
        cpus_per_run: With ray and slurm: CPU cores of a run.
        gpus_per_run: With ray and slurm: GPUs of a run, with ray also the share of one. Default: with ray one where the
            cluster has any, with slurm none.
        minutes: With slurm: time limit of a job; a run that reaches it is queued again and goes on.
        sbatch: With slurm: options of sbatch as NAME=VALUE, such as partition=long account=vision.
        device: Where each run computes; the file's own otherwise.
        plan: Only say what would run.
        table: Only make the table of what is there.

    Raises:
        ArgumentError: If the table of a folder without runs is asked for.
        SweepError: If runs failed; the table of the others is written all the same.
    """
    settings = EngineSettings(engine, workers, address, cpus_per_run, gpus_per_run, minutes, sbatch)
    sweep_config = SweepConfig.from_yaml(config)
    changes = {"data.root": root, "compute.device": device}
    sweep_config = sweep_config.with_settings({name: value for name, value in changes.items() if value is not None})
    folder = output or Path("runs/sweeps") / config.stem
    console = make_console()
    if plan:
        console.print(_plan(sweep_config, folder))
        return
    if table:
        if not (folder / "runs").is_dir():
            raise ArgumentError(f"{folder} holds no runs of a sweep to make a table of. Run it without --table first.")
        result = collect(sweep_config, folder)
        sweep_config.save(folder / SETTINGS_FILE)
        _show(console, task_table(result, title=config.stem), folder)
    else:
        console.print(_plan(sweep_config, folder))
        with sweeping(folder):
            result = run_sweep(sweep_config, folder, engine=settings, on_done=lambda *news: _tell(console, *news))
            _show(console, task_table(result, title=config.stem), folder)
    if result.failed:
        raise SweepError(_failures(result.failed))


def _plan(config: SweepConfig, folder: Path) -> str:
    phases = [f"{todo} of {total} runs to {purpose}" for purpose, todo, total in planned_runs(config, folder)]
    return (
        f"{len(config.sources)} tasks, {len(config.methods)} methods, seeds "
        f"{', '.join(map(str, config.seeds))}: {'; '.join(phases)}."
    )


def _tell(console: Console, outcome: JobOutcome, ended: int, total: int) -> None:
    said = f"failed: {outcome.error}" if outcome.error else f"{outcome.seconds:.0f} s"
    console.print(f"[{ended}/{total}] {outcome.key}: {said}", soft_wrap=True)


def task_table(result: SweepResult, *, title: str) -> TaskTable:
    """A sweep's results as the field's table, with the published row, if there is one, below.

    Args:
        result: The results.
        title: What stands above the table.

    Returns:
        The table.
    """
    rows = [_measured(result, label) for label in result.config.methods]
    if (published := result.config.published) is not None:
        rows.append(
            TableRow(
                label=published.label,
                values={task: [value / 100] for task, value in published.tasks.items()},
                group_values={group: value / 100 for group, value in published.groups.items()},
                mean=None if published.mean is None else published.mean / 100,
                note=published.source,
                published=True,
            )
        )
    return TaskTable(groups=result.config.groups, rows=tuple(rows), title=title)


def _measured(result: SweepResult, label: str) -> TableRow:
    counts = [run.trainable_params for run in result.runs if run.key.method == label]
    return TableRow(
        label=label,
        values=result.accuracies(label),
        trainable_params=round(sum(counts) / len(counts)) if counts else None,
    )


def _show(console: Console, table: TaskTable, folder: Path) -> None:
    for suffix, text in (("md", table.markdown()), ("csv", table.csv()), ("tex", table.latex())):
        path = folder / f"table.{suffix}"
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        show_path(console, "written", path)
    console.print(table)
    console.print(f"as a page for the browser: sensitune view {shlex.quote(str(folder))}", soft_wrap=True)


def _failures(failed: Mapping[RunKey, str]) -> str:
    for key, error in list(failed.items())[1:]:
        warn(f"failed: {key}: {error}")
    key, error = next(iter(failed.items()))
    again = "The same command tries again, but for what diverged: of that, delete the folder first."
    return f"Failed: {len(failed)} runs, such as {key}: {error} {again}"
