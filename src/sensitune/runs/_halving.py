"""Successive halving, by scikit-learn: everyone for a few epochs, the best third for three times as many, the best.

It is synchronous: a candidate goes on only when all of its rung have been heard, whatever their order. (An asynchronous
pruner, such as Optuna's, lets the first one pass every rung unopposed, and has no bound on the cost.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.experimental import enable_halving_search_cv  # noqa: F401  (without it there is no such search)
from sklearn.model_selection import HalvingGridSearchCV

FACTOR: Final = 3


@dataclass(frozen=True)
class Rung:
    """A candidate on a rung.

    Attributes:
        name: The candidate.
        rung: Which rung, from 1.
        epochs: How long it trained for it.
        kept: Whether it went on to the next, or, on the last, was chosen.
    """

    name: str
    rung: int
    epochs: int
    kept: bool


class _Trial(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no annotations
    """A candidate as scikit-learn asks for it: it trains on its own data."""

    def __init__(self, name: str = "", epochs: int = 0, score_of: Callable[[str, int], float] | None = None) -> None:
        self.name = name
        self.epochs = epochs
        self.score_of = score_of

    def fit(self, rows: Any, targets: Any = None) -> _Trial:
        """Train, and remember how good it is."""
        assert self.score_of is not None
        self.score_ = self.score_of(self.name, self.epochs)
        return self

    def score(self, rows: Any, targets: Any = None) -> float:
        """How good it is."""
        return self.score_


def halve(names: Sequence[str], score: Callable[[str, int], float], *, epochs: int) -> list[Rung]:
    """Find the best of some candidates.

    Args:
        names: The candidates, at least two; of equals the earlier one is better.
        score: (name, epochs) -> how good it is after that many; higher is better.
        epochs: Length of the first rung; each one after it is three times as long.

    Returns:
        Every step of the way.
    """

    def score_of(name: str, epochs: int) -> float:  # a plain function: scikit-learn copies anything else
        return score(name, epochs) - 1e-9 * names.index(name)

    one_split = [(np.array([0]), np.array([1]))]
    search = HalvingGridSearchCV(
        _Trial(score_of=score_of),
        {"name": list(names)},
        resource="epochs",
        min_resources=epochs,
        max_resources=epochs * FACTOR,
        factor=FACTOR,
        cv=one_split,
        refit=False,
        error_score="raise",
        return_train_score=False,
    )
    search.fit(np.zeros((2, 1)), np.zeros(2))
    found = search.cv_results_
    asked = list(zip(found["param_name"], map(int, found["iter"]), map(int, found["n_resources"]), strict=True))
    last = max(rung for _, rung, _ in asked)
    best = search.best_params_["name"]
    went_on = {(str(name), rung - 1) for name, rung, _ in asked} | {(str(best), last)}
    return [Rung(str(name), rung + 1, length, (str(name), rung) in went_on) for name, rung, length in asked]
