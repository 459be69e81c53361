"""The sentence encoder's study: its splits, its ways of spending the budget, its table."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

SUITE = Path(__file__).parents[2] / "benchmarks/accuracy"


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SUITE))
    return importlib.import_module


def test_no_text_is_in_two_parts_and_every_class_is_in_each(suite: Any) -> None:
    texts = {name: [f"{name} {number}" for number in range(100)] for name in ("a", "b")}
    texts["b"].append("a 3")
    parts = suite("texts").split(texts)
    shown = [[text for text, _ in part] for part in (parts.train, parts.validation, parts.test)]
    assert [len(part) for part in shown] == [90, 30, 60]
    assert len(set().union(*map(set, shown))) == 180
    assert "a 3" not in set().union(*map(set, shown))
    assert all({label for _, label in part} == {0, 1} for part in (parts.train, parts.validation, parts.test))
    assert parts == suite("texts").split(texts)


def test_the_table_says_how_many_runs_it_has_and_averages_no_incomplete_row(suite: Any, tmp_path: Path) -> None:
    rows = suite("rows")

    def row(task: str, method: str, seed: int, accuracy: float) -> Any:
        settings = {"learning_rate": 1e-3}
        return rows.Row(
            task, "text", method, settings, seed, None, 10, accuracy, 0.5, 0.1, 5, 1.0, "float32", 1, "cpu", "d", "c"
        )

    found = [row("x", "A", 0, 0.4), row("x", "A", 1, 0.6), row("y", "A", 0, 0.9), row("x", "B", 0, 0.7)]
    rows.write_rows(tmp_path / "rows.jsonl", found)
    table = suite("tables").language_table(tmp_path / "rows.jsonl")
    assert "| A | 10 | 0.001 | 50.0 | 90.0 | 70.0 | 50.0 | 3 |" in table
    assert "| B | 10 | 0.001 | 70.0 | – | – | – | 1 |" in table
    assert suite("tables").language_table(tmp_path / "none.jsonl") == "No run yet.\n"
