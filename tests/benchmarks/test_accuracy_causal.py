"""The language model's study: its corpora, which rate it keeps, its rows and its table."""

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


def _row(suite: Any, corpus: str, way: str, rate: float, loss: float, seed: int = 0) -> Any:
    return suite("rows").Row(
        task=corpus,
        group="language",
        method=way,
        settings=suite("causal").settings(rate),
        seed=seed,
        draw=None,
        trainable_params=10,
        test_accuracy=None,
        validation_accuracy=None,
        train_loss=1.0,
        epochs=1,
        seconds=1.0,
        precision="float32",
        threads=1,
        hardware="cpu",
        date="d",
        commit="c",
        test_loss=loss,
        validation_loss=loss + 1,
    )


def test_no_text_is_in_two_parts(suite: Any) -> None:
    def words(text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    texts = [f"{number} " * 50 for number in range(1000)]
    found = suite("corpora").parts(texts, words)
    shown = [set(part.unique().tolist()) for part in (found.train, found.validation, found.test)]
    assert [tuple(part.shape) for part in (found.train, found.validation, found.test)] == [
        (128, 128),
        (24, 128),
        (48, 128),
    ]
    assert len(set().union(*shown)) == sum(map(len, shown))
    assert found.test.equal(suite("corpora").parts(texts, words).test)
    with pytest.raises(ValueError, match="The texts end before the train rows are full"):
        suite("corpora").parts(texts[:100], words)


def test_a_way_keeps_the_rate_with_the_least_validation_loss(suite: Any) -> None:
    causal = suite("causal")
    rows = [
        _row(suite, "jargon", "Norms", rate, loss) for rate, loss in zip(causal.RATES, (3.0, 2.0, 4.0), strict=True)
    ]
    assert causal.chosen_rate(rows[:2], "Norms") is None
    assert causal.chosen_rate(rows, "Norms") == causal.RATES[1]
    first = next(causal.left([], [0]))
    assert first == ("jargon", "Norms", 0, causal.RATES[0])
    assert next(causal.left(rows[:1], [0])) == ("jargon", "Norms", 0, causal.RATES[1])
    waiting = list(causal.left(rows, [0, 1]))
    ready = [key[:1] + key[2:] for key in waiting if key[1] == "Norms"]
    rate, rest = causal.RATES[1], [("kjv", 0), ("esperanto", 0), ("kjv", 1), ("jargon", 1), ("esperanto", 1)]
    assert ready == [(corpus, seed, rate) for corpus, seed in rest]


def test_a_loss_is_kept_in_a_row_and_left_out_of_a_classifiers(suite: Any, tmp_path: Path) -> None:
    rows, path = suite("rows"), tmp_path / "rows.jsonl"
    with_loss = _row(suite, "kjv", "Norms", 1e-3, 2.5)
    rows.write_rows(path, [with_loss])
    assert '"test_loss": 2.5' in path.read_text()
    assert rows.read_rows(path) == [with_loss]
    old = Path(__file__).parents[2] / "benchmarks/results/accuracy_long.jsonl"
    rows.write_rows(path, rows.read_rows(old))
    assert path.read_text() == old.read_text()


def test_the_table_shows_the_chosen_rate_and_averages_no_incomplete_line(suite: Any, tmp_path: Path) -> None:
    causal, path = suite("causal"), tmp_path / "rows.jsonl"
    rows = [
        _row(suite, "jargon", "Norms", rate, loss) for rate, loss in zip(causal.RATES, (3.0, 2.0, 4.0), strict=True)
    ]
    suite("rows").write_rows(path, rows)
    assert f"| Norms | 10 | {causal.RATES[1]:g} | – | 2.000 | – | – | 1 |" in suite("tables").causal_table(path)
    rows += [_row(suite, corpus, "Norms", causal.RATES[1], 5.0) for corpus in ("kjv", "esperanto")]
    suite("rows").write_rows(path, rows)
    assert "| 5.000 | 2.000 | 5.000 | 4.000 | 3 |" in suite("tables").causal_table(path)
