"""docs/scale.md: its examples run, one after the other, on a small base in 4 bits; what it quotes exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from quantised_models import batches, nf4, small
from torch import nn

ROOT = Path(__file__).parents[1]
RUNS = ("scale_nf4.json", "scale_nf4_long.json")
KINDS = ("bfloat16", "nf4")
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: the extra `quantised`")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"batches": batches(), "model": nf4(small()), "load_the_base_again": lambda: nf4(small())}
    examples = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example.replace('"0.4%"', "1_500"), "scale.md", "exec"), names)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert type(names["merged"].fc) is nn.Linear


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGE))
    assert len(named) > 10
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), name


def test_the_shares_of_placements_that_stay_are_those_of_the_result() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "quantised_overlap.json").read_text(encoding="utf-8"))
    for budget, row in result["overlap"].items():
        cells = [
            f"{row[each][form]:.2f}"
            for form in ("modules", "whole_vectors", "sparse_values")
            for each in ("nf4 and float32", "two halves of the batches")
        ]
        assert f"| {budget.replace('%', ' %')} | {' | '.join(cells)} |" in PAGE


def test_the_arithmetic_of_the_page_is_that_of_the_results() -> None:
    results = ROOT / "benchmarks" / "results"
    command = [str(ROOT / "benchmarks" / "scale_arithmetic.py"), *(str(results / name) for name in RUNS)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 11
    assert "\n".join(rows) in PAGE


def test_the_measured_stages_are_those_of_the_results() -> None:
    both = [json.loads((ROOT / "benchmarks" / "results" / f"scale_{name}.json").read_text()) for name in KINDS]
    for stage in ("build", "score", "allocate", "train"):
        found = [each["stages"][stage] for each in both]
        cells = [
            (f"{row['seconds']:.0f}", f"{row['peak_own_mib']:,}", f"{row['peak_resident_mib']:,}") for row in found
        ]
        assert f"| {stage} | {' | '.join(cell for row in cells for cell in row)} |" in PAGE
    assert all(each["loaded_gives_the_same"] and each["stored_bytes_unchanged"] for each in both)
