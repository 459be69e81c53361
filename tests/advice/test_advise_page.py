"""docs/advise.md: its Python runs, and its limits and trainers are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from advised import Model

from sensitune.advice._advice import FLAT_BELOW
from sensitune.advice._write import TRAINERS

PAGE = (Path(__file__).parents[2] / "docs" / "advise.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    batches = [(torch.randn(4, 16), torch.tensor([0, 1, 2, 0])) for _ in range(4)]
    exec(code.replace('"0.5%"', '"20%"'), {"model": Model(), "batches": batches})
    assert capsys.readouterr().out.startswith(("Place it", "Uniform is fine here"))
    assert (tmp_path / "advice" / "adapter_config.json").exists()


def test_its_limits_and_trainers_are_the_codes() -> None:
    assert f"Below {FLAT_BELOW:g}, or when less than half" in PAGE
    assert re.findall(r"^\| `(\w[\w-]*)` \|", PAGE, re.MULTILINE) == list(TRAINERS)
