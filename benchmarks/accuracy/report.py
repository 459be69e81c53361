"""What the accuracy sweeps found: a table per task and group, mean ranks and paired intervals, as Markdown and JSON.

    python benchmarks/accuracy/report.py benchmarks/accuracy/cpu.yaml runs/accuracy/cpu --ours SPT-LoRA

Reads finished runs only, so it may be called while a sweep is under way; what is missing is said, not averaged over.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from statistics_of_runs import Accuracies, mean_and_error, mean_ranks, paired

from sensitune.sweeps import SweepConfig, SweepResult, collect

EQUAL = 0.02  # methods whose costs differ by more are not compared as if they were equal


def summarise(result: SweepResult, ours: str, split: str = "test") -> dict[str, Any]:
    """All numbers of a sweep, ready for JSON.

    Args:
        result: The sweep's runs.
        ours: Label of the method that the others are compared with.
        split: ``"test"``, or ``"validation"`` for a sweep that something is still to be chosen with.

    Returns:
        Methods with their accuracies by task and group, ranks, and the intervals of the difference to `ours`.
    """
    runs = {label: accuracies_of(result, label, split) for label in result.config.methods}
    runs = {label: found for label, found in runs.items() if found}
    costs = {label: _cost(result, label) for label in runs}
    ranks = mean_ranks(runs) if runs else {}
    methods = []
    for label, found in runs.items():
        comparison = None if label == ours or ours not in runs else paired(runs[ours], found)
        methods.append(
            {
                "method": label,
                "trainable_params": costs[label],
                "equal_cost": ours in costs and abs(costs[label] / costs[ours] - 1) <= EQUAL,
                "setting": _settings(result, label),
                "tasks": {task: _by_task(found, task) for task in result.config.sources},
                "groups": {group: _by_group(found, tasks) for group, tasks in result.config.tasks.items()},
                "mean_rank": ranks.get(label),
                f"{ours} minus this": None if comparison is None else comparison.to_dict(),
            }
        )
    return {
        "split": split,
        "num_runs": len(result.runs),
        "num_runs_planned": result.num_runs,
        "hours_of_training": round(sum(run.seconds for run in result.runs) / 3600, 2),
        "ranked_on": len(set.intersection(*(set(each) for each in runs.values()))) if runs else 0,
        "methods": methods,
        "validation": [
            {"task": task, "method": method, "accuracy": dict(found)}
            for (task, method), found in result.validation.items()
        ],
    }


def accuracies_of(result: SweepResult, label: str, split: str) -> Accuracies:
    """(task, seed) -> accuracy of a method on a split."""
    found = {}
    for run in result.runs:
        accuracy = run.accuracy if split == "test" else run.validation_accuracy
        if run.method == label and accuracy is not None:
            found[run.task, run.seed] = accuracy
    return found


def _cost(result: SweepResult, label: str) -> int:
    counts = [run.trainable_params for run in result.runs if run.method == label]
    return round(sum(counts) / len(counts))


def _settings(result: SweepResult, label: str) -> dict[str, Any]:
    return dict(next(run.setting for run in result.runs if run.method == label))


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
        "mean": round(100 * mean, 2),
        "error": None if error is None else round(100 * error, 2),
        "seeds": len(values),
    }


def markdown(summary: Mapping[str, Any], ours: str) -> str:
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
    lines += [
        "",
        f"Paired difference, {ours} minus the other, in points (95 % bootstrap interval over tasks and seeds):",
        "",
    ]
    lines += [_line(["other", "difference", "interval", "tasks", "pairs"]), _line(["---", *["---:"] * 4])]
    for each in methods:
        found = each[f"{ours} minus this"]
        if found is not None and each["equal_cost"]:
            low, high = found["interval"]
            numbers = [
                f"{found['difference']:+.2f}",
                f"{low:+.2f} to {high:+.2f}",
                found["num_tasks"],
                found["num_pairs"],
            ]
            lines.append(_line([each["method"], *map(str, numbers)]))
    lines += [
        "",
        f"{summary['split'].capitalize()} accuracy of the last epoch in per cent, mean ± standard error over seeds; "
        f"rank: mean over the {summary['ranked_on']} task-seed pairs that every method has run. \\* not at equal cost, "
        f"left out of the intervals. {summary['num_runs']} of {summary['num_runs_planned']} runs.",
    ]
    return "\n".join(lines) + "\n"


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
    parser.add_argument("--ours", default="SPT-LoRA")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--hardware", default=None, help="in words; default: this machine's processor")
    parser.add_argument("--output", type=Path, default=None, help="where to write the JSON")
    arguments = parser.parse_args()
    config = SweepConfig.from_yaml(arguments.config)
    summary = summarise(collect(config, arguments.folder), arguments.ours, arguments.split)
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
