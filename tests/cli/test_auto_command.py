from __future__ import annotations

from pathlib import Path

import pytest

from sensitune.runs import METHODS
from sensitune.runs.methods._candidates import CANDIDATES
from sensitune_command import main


def test_a_run_that_chooses_its_method_shows_what_it_tried(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # PEFT's LoRA costs more than this budget at rank 1.
    monkeypatch.setitem(vars(METHODS["auto"]), "candidates", [CANDIDATES[0], CANDIDATES[1], CANDIDATES[4]])
    arguments = [
        *("run", "--model", "vit_tiny_patch16_224", "--backbone.no-pretrained", "--data", str(squares)),
        *("--backbone.image-size", "32", "--backbone.num-blocks", "2", "--device", "cpu", "--epochs", "6"),
        *("--sensitivity.num-batches", "2", "--sensitivity.batch-size", "4", "--method", "auto", "--budget", "5000"),
        *("--output", str(tmp_path / "run")),
    ]
    assert main([*arguments, "--rank", "4"]) == 2
    assert "`--rank` is what each candidate of the method auto has a value of its own for." in capsys.readouterr().err
    assert main([*arguments, "--preset", "paper"]) == 2
    assert "`preset` belongs to the methods spt-lora" in capsys.readouterr().err.replace("--preset", "preset")
    assert not (tmp_path / "run").exists()

    assert main(arguments) == 0
    shown = capsys.readouterr().out
    page = (tmp_path / "run/report.md").read_text(encoding="utf-8").replace("\\", "")
    for text in (shown, page):
        assert "Candidates tried" in text
        assert "Auto: " in text
    assert "| SPT-LoRA, preset best | 1 | 1 | " in page
    assert "not tried: Rank 1 costs 6,144 parameters, the budget is 5,000." in page
    assert "| chosen |" in page
    assert "1.33 full runs" in page
    assert (tmp_path / "run/figures/trials.csv").is_file()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert main(arguments) == 0
    assert "Candidates tried" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
