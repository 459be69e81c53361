"""``sensitune view``, from a finished run to its page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sensitune.allocation import Allocation, allocate
from sensitune.runs import Run, RunConfig, RunFolder, budget_ladder
from sensitune_command import main


def test_a_finished_run_and_its_allocation_file_each_get_a_page(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    assert main(["view", str(folder), str(folder / "allocation.safetensors")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"page: {folder / 'report.html'}", f"page: {folder / 'allocation.html'}"]
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "9,000 (" in html
    assert "split_seed: 0" in html
    assert 'id="budget"' in html
    assert 'id="budget"' not in (folder / "allocation.html").read_text(encoding="utf-8")


def test_the_sliders_budgets_are_placed_as_a_run_would_place_them(finished: Path) -> None:
    run = Run.load(finished)
    ladder, sensitivity = budget_ladder(run, steps=5), run.sensitivity()
    budgets = [each.trainable_params for each in ladder]
    assert budgets == sorted(budgets)
    assert 9_000 in budgets
    assert len(ladder) > 2
    for found in ladder:
        expected = allocate(sensitivity, budget=found.trainable_params, rank=run.config.allocation.rank)
        assert isinstance(expected, Allocation)
        assert found.table() == expected.table()


def test_a_run_that_is_not_finished_has_no_page_yet(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder.open(tmp_path / "run", config)
    assert main(["view", str(tmp_path / "run")]) == 2
    assert f"is not finished. Finish it: `sensitune train {tmp_path / 'run'}`." in capsys.readouterr().err
    assert not (tmp_path / "run" / "report.html").exists()
