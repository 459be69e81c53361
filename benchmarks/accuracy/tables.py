r"""The study's tables from its rows alone, put into the pages that quote them.

    python benchmarks/accuracy/tables.py          # computes the tables and writes them into docs/accuracy.md
    python benchmarks/accuracy/tables.py --check  # only says whether the page holds what the rows give

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``. `TABLES` has the names.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from causal import chosen_rate
from corpora import CORPORA
from rows import Row, read_rows
from statistics_of_runs import mean_and_error
from study import Study

from report import markdown, summarise
from sensitune.sweeps import RunKey, SweepConfig, SweepResult, SweepRun

HERE = Path(__file__).parent
ROWS = HERE.parent / "results/accuracy_long.jsonl"
LANGUAGE_ROWS = HERE.parent / "results/accuracy_language.jsonl"
AUTO_ROWS = HERE.parent / "results/accuracy_auto.jsonl"
RULES_ROWS = HERE.parent / "results/accuracy_rules.jsonl"
CAUSAL_ROWS = HERE.parent / "results/accuracy_causal.jsonl"
PAGE = HERE.parents[1] / "docs/accuracy.md"


def result_of(name: str, *, rows: Path = ROWS) -> SweepResult:
    """What the rows say of a profile: the tested runs of every method whose setting is chosen.

    Args:
        name: The profile's file without its ending.
        rows: The rows.

    Returns:
        The runs as a sweep finds them.
    """
    study = Study(SweepConfig.from_yaml(HERE / f"{name}.yaml"), rows)
    config, choices, by_key = study.config, study.choices(), {row.key: row for row in study.rows}
    keys = [
        RunKey(task, method, choices[method], seed)
        for seed in config.seeds
        for task, method in config.pairs()
        if method in choices
    ]
    found = [(key, by_key[study.row_key(key)]) for key in keys if study.row_key(key) in by_key]
    runs = tuple(_run(key, row) for key, row in found if row.test_accuracy is not None)
    failed = {key: "The training diverged." for key, row in found if row.test_accuracy is None}
    planned = len(config.sources) * len(config.methods) * len(config.seeds)
    return SweepResult(config, runs, planned, failed, {})


def _run(key: RunKey, row: Row) -> SweepRun:
    assert row.test_accuracy is not None
    return SweepRun(key, row.test_accuracy, row.validation_accuracy, row.trainable_params, row.seconds, "")


def with_probe(result: SweepResult, probe: SweepResult) -> SweepResult:
    """A profile's table with the linear probe first, whose one run stands for every seed: none of it is random.

    Args:
        result: The profile.
        probe: The probe's runs.

    Returns:
        Both.
    """
    config = replace(result.config, methods={**probe.config.methods, **result.config.methods})
    runs = tuple(replace(run, key=replace(run.key, seed=seed)) for run in probe.runs for seed in result.config.seeds)
    planned = probe.num_runs * len(result.config.seeds)
    return SweepResult(config, (*runs, *result.runs), result.num_runs + planned, result.failed, {})


def long_table() -> str:
    """Every method of the long profile."""
    result = with_probe(result_of("long"), result_of("long_probe"))
    if not result.runs:
        return "No run yet.\n"
    ran = {run.key.method for run in result.runs}
    ours = [label for label in ("SPT-LoRA, preset best", "SPT-LoRA") if label in ran] or [result.runs[0].key.method]
    return markdown(summarise(result, ours), ours)


def start_table() -> str:
    """A random head against a fitted one, on test and validation pictures, at each learning rate."""
    study = Study(SweepConfig.from_yaml(HERE / "long_start.yaml"), ROWS)
    by_key = {row.key: row for row in study.rows}
    probes = {row.task: row for row in study.rows if row.method == "Linear probe"}
    tasks = list(study.config.sources)
    lines = [
        _line(["method", "lr", "head", *tasks, "mean", "validation"]),
        _line(["---", "---:", "---", *["---:"] * (len(tasks) + 2)]),
    ]
    if all(task in probes for task in tasks):
        lines.append(_start_line("Linear probe", "–", "fitted", [probes[task] for task in tasks]))
    gains: list[float] = []
    for method in study.config.methods:
        for rate in study.config.choose["recipe.learning_rate"]:
            found: dict[str, list[Row]] = {}
            for start in ("random", "probe"):
                keys = [
                    study.row_key(RunKey(task, method, {"recipe.head_start": start, "recipe.learning_rate": rate}, 0))
                    for task in tasks
                ]
                found[start] = [by_key[key] for key in keys if key in by_key]
                if len(found[start]) == len(tasks):
                    shown = {"random": "random", "probe": "fitted"}[start]
                    lines.append(_start_line(method, f"{rate:g}", shown, found[start]))
            if all(len(each) == len(tasks) for each in found.values()):
                gains += [_test(b) - _test(a) for a, b in zip(found["random"], found["probe"], strict=True)]
    if len(gains) > 1:
        mean, error = mean_and_error(gains)
        lines += [
            "",
            f"The fitted head gains {mean:+.1f} ± {error:.1f} points of test accuracy over {len(gains)} pairs of runs.",
        ]
    return "\n".join(lines) + "\n"


def _start_line(method: str, rate: str, head: str, rows: Sequence[Row]) -> str:
    tests = [_test(row) for row in rows]
    validation = fmean(100 * (row.validation_accuracy or 0) for row in rows)
    return _line([method, rate, head, *(f"{each:.1f}" for each in (*tests, fmean(tests), validation))])


def _test(row: Row) -> float:
    return 100 * (row.test_accuracy or 0.0)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def language_table(rows: Path = LANGUAGE_ROWS) -> str:
    """Every way to tune the sentence encoder, at each learning rate: mean test accuracy over its seeds."""
    found = read_rows(rows)
    if not found:
        return "No run yet.\n"
    tasks = list(dict.fromkeys(row.task for row in found))
    lines = [
        _line(["method", "trainable", "lr", *tasks, "mean", "validation", "runs"]),
        _line(["---", "---:", "---:", *["---:"] * (len(tasks) + 3)]),
    ]
    for method, rate in dict.fromkeys((row.method, row.settings["learning_rate"]) for row in found):
        own = [row for row in found if (row.method, row.settings["learning_rate"]) == (method, rate)]
        by_task = [[row for row in own if row.task == task] for task in tasks]
        whole = all(by_task)
        means = [f"{fmean(map(_test, each)):.1f}" if each else "–" for each in by_task]
        overall = f"{fmean(fmean(map(_test, each)) for each in by_task):.1f}" if whole else "–"
        validation = fmean(100 * (row.validation_accuracy or 0) for row in own)
        lines.append(
            _line(
                [
                    method,
                    f"{own[0].trainable_params:,}",
                    f"{rate:g}",
                    *means,
                    overall,
                    f"{validation:.1f}" if whole else "–",
                    str(len(own)),
                ]
            )
        )
    return "\n".join(lines) + "\n"


def causal_table(rows: Path = CAUSAL_ROWS) -> str:
    """Held-out loss of every way to tune the language model at its chosen rate, and each rate that was tried."""
    found = read_rows(rows)
    if not found:
        return "No run yet.\n"
    lines = [
        _line(["method", "trainable", "lr", *CORPORA, "mean", "runs"]),
        _line(["---", "---:", "---:", *["---:"] * (len(CORPORA) + 2)]),
    ]
    for method in dict.fromkeys(row.method for row in found):
        rate = 0.0 if method == "Untouched" else chosen_rate(found, method)
        own = [row for row in found if row.method == method and row.settings["learning_rate"] == rate]
        if own:
            by_corpus = [[row.test_loss for row in own if row.task == corpus] for corpus in CORPORA]
            means = [fmean(each) if each else None for each in by_corpus]
            whole = all(each is not None for each in means)
            shown = [*means, fmean(means) if whole else None]
            cells = [f"{each:.3f}" if each is not None else "–" for each in shown]
            lines.append(
                _line([method, f"{own[0].trainable_params:,}", f"{rate:g}" if rate else "–", *cells, str(len(own))])
            )
    return "\n".join(lines) + "\n"


def table_of(path: Path) -> str:
    """Test accuracy of every method on every task of a file of one seed, and the mean on the validation pictures.

    Args:
        path: The rows.

    Returns:
        The table; a method that has not run every task has no means.
    """
    found = read_rows(path)
    if not found:
        return "No run yet.\n"
    tasks = list(dict.fromkeys(row.task for row in found))
    lines = [_line(["method", *tasks, "mean", "validation"]), _line(["---", *["---:"] * (len(tasks) + 2)])]
    for method in dict.fromkeys(row.method for row in found):
        by_task = {row.task: row for row in found if row.method == method}
        own = [f"{_test(by_task[task]):.1f}" if task in by_task else "–" for task in tasks]
        whole = len(by_task) == len(tasks)
        mean = f"{fmean(map(_test, by_task.values())):.1f}" if whole else "–"
        validation = f"{fmean(100 * (row.validation_accuracy or 0) for row in by_task.values()):.1f}" if whole else "–"
        lines.append(_line([method, *own, mean, validation]))
    return "\n".join(lines) + "\n"


def auto_table() -> str:
    """The method auto beside its candidates."""
    return table_of(AUTO_ROWS)


def rules_table() -> str:
    """Rules and scores that were tried beside the preset's and are gone."""
    return table_of(RULES_ROWS)


TABLES: Mapping[str, Callable[[], str]] = {
    "long": long_table,
    "long_start": start_table,
    "language": language_table,
    "causal": causal_table,
    "auto": auto_table,
    "rules": rules_table,
}


def filled(page: str) -> str:
    """A page with its tables computed anew.

    Args:
        page: Its Markdown.

    Returns:
        The same, each table between its marks replaced.
    """

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n\n{TABLES[match[1]]()}\n<!-- end of table -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end of table -->", table, page, flags=re.DOTALL)


def main() -> None:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    after = filled(before)
    if arguments.check:
        sys.exit(f"{PAGE.name} differs from the rows: run `make report-accuracy`." if before != after else 0)
    PAGE.write_text(after, encoding="utf-8")
    for name, make in TABLES.items():
        print(f"## {name}\n\n{make()}")


if __name__ == "__main__":
    main()
