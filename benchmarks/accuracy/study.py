r"""Run a profile of the study, a row for every run; the same command goes on where the rows end, on any machine.

    python benchmarks/accuracy/shrink.py --image-size 70
    TIMM_FUSED_ATTN=0 python benchmarks/accuracy/study.py benchmarks/accuracy/long.yaml \
      --rows benchmarks/results/accuracy_long.jsonl

A profile is a sweep's file. Where it has something to choose, every method tries it on the deciding tasks, and the
rest of its runs take what was best on the validation pictures. Every run is tested once, after its last epoch. Rows
are the only memory: a run with a row is never repeated, and its folder is removed. A row says which precision its run
had; to the profile it is the same run in either. What is shared by runs with the same
task and seed, their pictures, backbone and scores, is made once in a row of them.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rows import Row, Value, as_text, read_rows, write_rows

from sensitune.errors import NonFiniteError
from sensitune.runs import Run, RunConfig
from sensitune.sweeps import RunKey, SweepConfig
from sensitune.training import TrainingResult

DRAWN = ("random", "random-lora", "random-sparse")
# What a run has for other reasons than that it was asked for.
NOT_ASKED = ("data.source", "data.test", "data.train_on_validation", "seed")


class Study:
    """A profile and its rows.

    Args:
        config: The profile.
        path: The file of its rows.
    """

    def __init__(self, config: SweepConfig, path: Path) -> None:
        self.config = config
        self.path = path
        self.rows = read_rows(path)
        self._done = {row.key for row in self.rows}
        self._shared = _flat(RunConfig.from_dict({**_any_data(config), **config.run}).to_dict())

    def settings(self, key: RunKey) -> dict[str, Value]:
        """What a run has that the profile's other runs need not have."""
        own = _flat(self.config.run_config(key).to_dict())
        return {name: own[name] for name in own if own[name] != self._shared.get(name) and name not in NOT_ASKED}

    def row_key(self, key: RunKey) -> tuple[str, str, str, int]:
        """What the run's row is known by."""
        return key.task, key.method, as_text(self.settings(key)), key.seed

    def is_done(self, key: RunKey) -> bool:
        """Whether the run has a row."""
        return self.row_key(key) in self._done

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows.append(row)
        self._done.add(row.key)
        write_rows(self.path, self.rows)

    def choosing(self) -> list[RunKey]:
        """The runs that settings are chosen with; none where there is nothing to choose."""
        settings = self.config.candidates()
        if len(settings) == 1:
            return []
        return [
            RunKey(task, method, setting, seed)
            for seed in self.config.choose_seeds
            for task in self.config.choose_tasks or self.config.sources
            for method in self.config.methods
            for setting in settings
        ]

    def choices(self) -> dict[str, Mapping[str, Value]]:
        """Method -> the setting with the best mean validation accuracy; only methods whose runs are all there."""
        settings = self.config.candidates()
        if len(settings) == 1:
            return dict.fromkeys(self.config.methods, settings[0])
        reached = {row.key: row.validation_accuracy or 0.0 for row in self.rows}
        found: dict[str, dict[int, list[float | None]]] = {}
        for key in self.choosing():
            value = reached.get(self.row_key(key))
            found.setdefault(key.method, {}).setdefault(settings.index(dict(key.setting)), []).append(value)
        complete = {
            method: {number: fmean(value for value in values if value is not None) for number, values in tried.items()}
            for method, tried in found.items()
            if all(value is not None for values in tried.values() for value in values)
        }
        return {method: settings[max(means, key=lambda each: means[each])] for method, means in complete.items()}

    def left(self) -> Iterator[RunKey]:
        """The runs without a row, those to choose with first."""
        yield from (key for key in self.choosing() if not self.is_done(key))
        choices = self.choices()
        for seed in self.config.seeds:
            for task, method in self.config.pairs():
                if method in choices and not self.is_done(key := RunKey(task, method, choices[method], seed)):
                    yield key


def _any_data(config: SweepConfig) -> dict[str, Any]:
    return {"data": {**config.run.get("data", {}), "source": next(iter(config.sources.values()))}}


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Value]:
    flat: dict[str, Value] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{where}{key}.")
        else:
            flat[f"{where}{key}"] = value
    return flat


class Runner:
    """Runs keys one after the other; the last one's pictures, backbone and scores serve the next where they can.

    Args:
        study: The profile.
        work: Folder for what is under way.
    """

    def __init__(self, study: Study, work: Path) -> None:
        self.study = study
        self.work = work
        self._last: Run | None = None

    def run(self, key: RunKey) -> Row:
        """Train and test one run.

        Args:
            key: The run.

        Returns:
            Its row.
        """
        config = self.study.config.run_config(key)
        scores = self.work / "scores" / f"{key.task}-{key.seed}"
        for other in scores.parent.glob("*"):
            if other != scores:
                shutil.rmtree(other)
        known = self._last.ingredients if self._last is not None else None
        shared = known if known is not None and known.suit(config) else None
        run = Run.open(self.work / "runs" / key.folder, config, ingredients=shared, scores=scores)
        self._last = run
        try:
            result, accuracy = run.train(), run.evaluate(split="test").accuracy
        except NonFiniteError:
            result, accuracy = None, None
        cost = run.origin().trainable_params if result is not None else 0
        row = self._row(key, config, cost, result, accuracy)
        shutil.rmtree(run.folder.path)
        return row

    def _row(
        self, key: RunKey, config: RunConfig, cost: int, result: TrainingResult | None, accuracy: float | None
    ) -> Row:
        groups = {task: group for group, tasks in self.study.config.groups.items() for task in tasks}
        return Row(
            task=key.task,
            group=groups[key.task],
            method=key.method,
            settings=self.study.settings(key),
            seed=key.seed,
            draw=key.seed if config.allocation.method in DRAWN else None,
            trainable_params=cost,
            test_accuracy=accuracy,
            validation_accuracy=None if result is None else result.validation_accuracy_last,
            train_loss=None if result is None else round(result.metrics[-1].train_loss, 6),
            epochs=config.recipe.epochs,
            seconds=0.0 if result is None else round(result.seconds, 1),
            precision=config.recipe.precision if result is None else result.precision,
            threads=torch.get_num_threads(),
            hardware=processor(),
            date=datetime.now(UTC).date().isoformat(),
            commit=commit(),
        )


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit that is checked out, with a plus sign if it was changed."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../../src")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is left of a profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".cache/accuracy/work"))
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="what this machine is fast at; default: the profile's"
    )
    parser.add_argument("--most", type=int, default=None, help="runs to do; default: all")
    given = parser.parse_args(arguments)
    config = SweepConfig.from_yaml(given.config)
    if given.precision is not None:
        recipe = {**config.run.get("recipe", {}), "precision": given.precision}
        config = replace(config, run={**config.run, "recipe": recipe})
    study = Study(config, given.rows)
    runner = Runner(study, given.work / given.config.stem)
    done = 0
    while (key := next(study.left(), None)) is not None and (given.most is None or done < given.most):
        row = runner.run(key)
        study.add(row)
        done += 1
        print(f"{key}: test {row.test_accuracy}, validation {row.validation_accuracy}, {row.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
