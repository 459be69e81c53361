"""Ranks and paired intervals over tasks and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Accuracies = Mapping[tuple[str, int], float]
"""(task, seed) -> accuracy of one method."""


@dataclass(frozen=True)
class Paired:
    """The mean difference of two methods on the same tasks and seeds.

    Attributes:
        difference: Mean of ours minus theirs; the mean over tasks of the mean over seeds.
        low: 2.5 % quantile of its bootstrap.
        high: 97.5 % quantile.
        num_tasks: Tasks that both have.
        num_pairs: Task-seed pairs that both have.
    """

    difference: float
    low: float
    high: float
    num_tasks: int
    num_pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, in points of accuracy (per cent)."""
        return {
            "difference": round(100 * self.difference, 2),
            "interval": [round(100 * self.low, 2), round(100 * self.high, 2)],
            "num_tasks": self.num_tasks,
            "num_pairs": self.num_pairs,
        }


def paired(ours: Accuracies, theirs: Accuracies, *, resamples: int = 10_000, seed: int = 0) -> Paired | None:
    """Bootstrap interval of a mean difference, resampling tasks, and the seeds within each.

    Tasks are the unit that a claim generalises over, so they are drawn with replacement; then each drawn task's seeds.

    Args:
        ours: One method's accuracies.
        theirs: Another's.
        resamples: How many.
        seed: Of the resampling.

    Returns:
        The interval; None if the methods share no task and seed.
    """
    by_task: dict[str, list[float]] = {}
    for task, run in sorted(ours.keys() & theirs.keys()):
        by_task.setdefault(task, []).append(ours[task, run] - theirs[task, run])
    if not by_task:
        return None
    tasks = [np.array(values) for values in by_task.values()]
    generator = np.random.default_rng(seed)
    rows = np.arange(resamples)
    total = np.zeros(resamples)
    for _ in tasks:  # as many tasks as there are; each with seeds of its own, also where a task comes twice
        drawn = np.stack([generator.choice(values, (resamples, len(values))).mean(axis=1) for values in tasks], axis=1)
        total += drawn[rows, generator.integers(len(tasks), size=resamples)]
    means = total / len(tasks)
    low, high = np.quantile(means, [0.025, 0.975])
    difference = float(np.mean([values.mean() for values in tasks]))
    return Paired(difference, float(low), float(high), len(tasks), sum(map(len, tasks)))


def mean_ranks(methods: Mapping[str, Accuracies]) -> dict[str, float]:
    """The mean rank of every method, 1 the best, over the tasks and seeds that all of them have; ties share a rank.

    Args:
        methods: Method -> its accuracies.

    Returns:
        Method -> mean rank; empty if no task and seed is common to all.
    """
    common = sorted(set.intersection(*(set(each) for each in methods.values())))
    if not common:
        return {}
    table = np.array([[each[key] for key in common] for each in methods.values()])
    better = (table[None] > table[:, None]).sum(axis=1)
    equal = (table[None] == table[:, None]).sum(axis=1)
    ranks = better + (equal + 1) / 2
    return dict(zip(methods, map(float, ranks.mean(axis=1)), strict=True))


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error; None for the latter with a single value."""
    array = np.asarray(values)
    error = None if array.size < 2 else float(array.std(ddof=1) / np.sqrt(array.size))
    return float(array.mean()), error
