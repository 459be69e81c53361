"""docs/export.md: its examples run, one after the other, on a tiny model, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tuned_models import IMAGES, LABELS, tiny_vit

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(examples) == 3
    names = {"batches": [(IMAGES, LABELS)]}
    for example in examples:
        names["model"] = tiny_vit(width=32)  # each starts from the plain model
        exec(compile(example.replace('"0.5%"', "2_000"), "export.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "parameters, and a head of 165" in shown
    assert "('head',)" in shown
    assert (tmp_path / "start" / "adapter_config.json").is_file()
    assert (tmp_path / "plain_lora" / "adapter_model.safetensors").is_file()


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGE)
    assert named
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), name
