r"""What the accuracy sweeps found: a table per task and group, mean ranks and paired intervals, as Markdown and JSON.

    python benchmarks/accuracy/report.py benchmarks/accuracy/cpu.yaml runs/accuracy/cpu --ours SPT-LoRA \
      --also runs/accuracy/adapter_plus/results.json

Reads finished runs only, so it may be called while a sweep is under way; what is missing is said, not averaged over.
A rank is over the runs that all methods with nearly all runs have.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from statistics_of_runs import Accuracies, mean_and_error, mean_ranks, paired

from sensitune.errors import ArgumentError
from sensitune.sweeps import SweepConfig, SweepRecord, SweepResult, collect

COMPLETE = 0.9  # methods that have a smaller share of the runs get no rank
EQUAL = 0.02  # methods whose costs differ by more are not compared as if they were equal


def with_results(result: SweepResult, path: Path) -> SweepResult:
    """A sweep's runs with those of methods that are not part of it.

    Args:
        result: The sweep's runs.
        path: The ``results.json`` of another sweep, such as `adapter_plus.py`'s.

    Returns:
        Both.

    Raises:
        ArgumentError: If a method's label is taken, or it has run a task or a seed that the sweep has not.
    """
    found, config = SweepRecord.load(path), result.config
    for run in found.runs:
        key = run.key
        if key.method in labels_of(result):
            raise ArgumentError(
                f"{path} has the results of {key.method!r}, which the table has already. Leave one out."
            )
        if key.task not in config.sources or key.seed not in config.seeds:
            raise ArgumentError(f"{path} has a run of {key.task}, seed {key.seed}, which is not of this sweep.")
    return replace(
        result,
        runs=(*result.runs, *(replace(run, folder=str(path.parent / run.folder)) for run in found.runs)),
        num_runs=result.num_runs + found.num_runs,
        failed={**result.failed, **{each.key: each.error for each in found.failed}},
        validation={**result.validation, **{(each.task, each.method): each.accuracy for each in found.validation}},
    )


def without_tasks(result: SweepResult, names: Sequence[str]) -> SweepResult:
    """The runs of the other tasks, such as those on which nothing was chosen.

    Args:
        result: The sweep's runs.
        names: Tasks to leave out.

    Returns:
        The rest, of a sweep that never had them.

    Raises:
        ArgumentError: If the sweep has no such task.
    """
    config = result.config
    if unknown := [name for name in names if name not in config.sources]:
        raise ArgumentError(f"The sweep has no task {unknown[0]!r}. It has: {', '.join(config.sources)}.")
    kept = {task: source for task, source in config.sources.items() if task not in names}
    groups = {group: tuple(kept[task] for task in tasks if task in kept) for group, tasks in config.groups.items()}
    config = replace(
        config,
        tasks={group: sources for group, sources in groups.items() if sources},
        choose_tasks=tuple(task for task in config.choose_tasks if task in kept),
        published=None,
    )
    return replace(
        result,
        config=config,
        runs=tuple(run for run in result.runs if run.key.task in kept),
        num_runs=result.num_runs * len(kept) // len(result.config.sources),
    )


def labels_of(result: SweepResult) -> list[str]:
    """The sweep's methods, then those that `with_results` added."""
    return list(dict.fromkeys([*result.config.methods, *(run.key.method for run in result.runs)]))


def summarise(result: SweepResult, ours: Sequence[str], split: str = "test") -> dict[str, Any]:
    """All numbers of a sweep, ready for JSON.

    Args:
        result: The sweep's runs.
        ours: Labels of the methods that the others are compared with; costs are compared with the first one's.
        split: ``"test"``, or ``"validation"`` for a sweep that something is still to be chosen with.

    Returns:
        Methods with their accuracies by task and group, ranks, and the intervals of the difference to each of `ours`.
    """
    runs = {label: accuracies_of(result, label, split) for label in labels_of(result)}
    runs = {label: found for label, found in runs.items() if found}
    costs = {label: _cost(result, label) for label in runs}
    complete = complete_methods(runs)
    ranks = mean_ranks(complete) if complete else {}
    methods = []
    for label, found in runs.items():
        methods.append(
            {
                "method": label,
                "trainable_params": costs[label],
                "equal_cost": ours[0] in costs and equal_cost(costs[label], costs[ours[0]]),
                "setting": _settings(result, label),
                "tasks": {task: _by_task(found, task) for task in result.config.sources},
                "groups": {group: _by_group(found, tasks) for group, tasks in result.config.groups.items()},
                "mean_rank": ranks.get(label),
                **{f"{one} minus this": _difference(runs, one, label) for one in ours},
            }
        )
    return {
        "split": split,
        "num_runs": len(result.runs),
        "num_runs_planned": result.num_runs,
        "failed": {str(key): error for key, error in result.failed.items()},
        "hours_of_training": round(sum(run.seconds for run in result.runs) / 3600, 2),
        "ranked_on": len(set.intersection(*(set(each) for each in complete.values()))) if complete else 0,
        "methods": methods,
        "validation": [
            {"task": task, "method": method, "accuracy": dict(found)}
            for (task, method), found in result.validation.items()
        ],
    }


def complete_methods(runs: Mapping[str, Accuracies]) -> dict[str, Accuracies]:
    """The methods that have nearly as many runs as the one with most; those under way lack a few."""
    most = max(map(len, runs.values()), default=0)
    return {label: found for label, found in runs.items() if len(found) >= COMPLETE * most}


def equal_cost(params: int, others: int) -> bool:
    """Whether two costs, in parameters, are close enough to be compared as if they were equal."""
    return abs(params - others) <= EQUAL * others


def accuracies_of(result: SweepResult, label: str, split: str) -> Accuracies:
    """(task, seed) -> accuracy of a method on a split."""
    found = {}
    for run in result.runs:
        accuracy = run.accuracy if split == "test" else run.validation_accuracy
        if run.key.method == label and accuracy is not None:
            found[run.key.task, run.key.seed] = accuracy
    return found


def _difference(runs: Mapping[str, Accuracies], ours: str, label: str) -> dict[str, Any] | None:
    comparison = None if label == ours or ours not in runs else paired(runs[ours], runs[label])
    return None if comparison is None else comparison.to_dict()


def _cost(result: SweepResult, label: str) -> int:
    counts = [run.trainable_params for run in result.runs if run.key.method == label]
    return round(sum(counts) / len(counts))


def _settings(result: SweepResult, label: str) -> dict[str, Any]:
    return dict(next(run.key.setting for run in result.runs if run.key.method == label))


def _by_task(found: Accuracies, task: str) -> dict[str, Any] | None:
    values = [accuracy for (name, _), accuracy in sorted(found.items()) if name == task]
    return _rounded(values) if values else None


def _by_group(found: Accuracies, tasks: tuple[str, ...]) -> dict[str, Any] | None:
    """Mean over the group's tasks for each seed that has them all, then over the seeds."""
    seeds = sorted({seed for _, seed in found})
    values = [
        sum(found[task, seed] for task in tasks) / len(tasks)
        for seed in seeds
        if all((task, seed) in found for task in tasks)
    ]
    return _rounded(values) if values else None


def _rounded(values: list[float]) -> dict[str, Any]:
    mean, error = mean_and_error(values)
    return {
        "mean": round(100 * mean, 4),  # shown with one digit: rounding twice would show another
        "error": None if error is None else round(100 * error, 4),
        "seeds": len(values),
    }


def markdown(summary: Mapping[str, Any], ours: Sequence[str]) -> str:
    """The tables as a page.

    Args:
        summary: From `summarise`.
        ours: As there.

    Returns:
        Markdown.
    """
    methods = summary["methods"]
    tasks, groups = list(methods[0]["tasks"]), list(methods[0]["groups"])
    head = ["method", "trainable", "lr", *tasks, *groups, "rank"]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for each in methods:
        cost = f"{each['trainable_params']:,}" + ("" if each["equal_cost"] else " *")
        cells = [_cell(each["tasks"][task]) for task in tasks] + [_cell(each["groups"][group]) for group in groups]
        rank = "–" if each["mean_rank"] is None else f"{each['mean_rank']:.2f}"
        rate = ", ".join(f"{value:g}" for value in each["setting"].values()) or "–"
        lines.append(_line([each["method"], cost, rate, *cells, rank]))
    for one in ours:
        lines += _intervals(methods, one)
    failed = summary["failed"]
    lines += [
        "",
        f"{summary['split'].capitalize()} accuracy of the last epoch in per cent, mean ± standard error over seeds; "
        f"rank: mean over {summary['ranked_on']} task-seed pairs, among the methods that have run all of them (–: has "
        f"not). \\* cost differs from that of {ours[0]}. {summary['num_runs']} of {summary['num_runs_planned']} runs."
        + (f" Without a result, left out: {', '.join(failed)}." if failed else ""),
    ]
    return "\n".join(lines) + "\n"


def _intervals(methods: Sequence[Mapping[str, Any]], ours: str) -> list[str]:
    """One method against those of its cost."""
    costs = {each["method"]: each["trainable_params"] for each in methods}
    lines = [
        "",
        f"Paired difference, {ours} minus the other at equal cost, in points (95 % bootstrap interval over tasks and "
        "seeds):",
        "",
        _line(["other", "difference", "interval", "tasks", "pairs"]),
        _line(["---", *["---:"] * 4]),
    ]
    for each in methods:
        found = each[f"{ours} minus this"]
        if found is not None and equal_cost(each["trainable_params"], costs[ours]):
            low, high = found["interval"]
            numbers = [
                f"{found['difference']:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                found["num_tasks"],
                found["num_pairs"],
            ]
            lines.append(_line([each["method"], *map(str, numbers)]))
    return lines


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{found['mean']:.1f}" + ("" if found["error"] is None else f" ± {found['error']:.1f}")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables of a sweep, and write its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ours", nargs="+", default=["SPT-LoRA"], help="methods that the others are compared with")
    parser.add_argument("--also", type=Path, nargs="+", default=[], help="results.json of methods beside the sweep")
    parser.add_argument("--without", nargs="+", default=[], help="tasks to leave out")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--hardware", default=None, help="in words; default: this machine's processor")
    parser.add_argument("--output", type=Path, default=None, help="where to write the JSON")
    arguments = parser.parse_args()
    config = SweepConfig.from_yaml(arguments.config)
    result = collect(config, arguments.folder)
    for path in arguments.also:
        result = with_results(result, path)
    result = without_tasks(result, arguments.without)
    if unknown := [label for label in arguments.ours if label not in labels_of(result)]:
        parser.error(f"--ours has {unknown[0]!r}, which is none of: {', '.join(labels_of(result))}.")
    summary = summarise(result, arguments.ours, arguments.split)
    header = {
        "command": config.command,
        "hardware": arguments.hardware
        or f"{torch.get_num_threads()} cores, {platform.processor() or platform.machine()}",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("sensitune", "torch", "timm", "peft")},
    }
    print(markdown(summary, arguments.ours))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(header | summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
