"""The report of a run, in its folder."""

from __future__ import annotations

import dataclasses
import errno
import re
from pathlib import Path

import pytest

from sensitune.allocation import Allocation
from sensitune.report import ComparisonRow, write_report
from sensitune.sensitivity import Sensitivity


def test_a_report_shows_every_figure_it_writes(
    allocation: Allocation, sensitivity: Sensitivity, tmp_path: Path
) -> None:
    methods = {"SPT-LoRA": 0.75, "Uniform LoRA": 0.74}
    comparison = [
        ComparisonRow.of(allocation, method=method, last_accuracy=accuracy, seeds=[0])
        for method, accuracy in methods.items()
    ]
    written = write_report(tmp_path, allocation, sensitivity=sensitivity, comparison=comparison)
    page = written[0].read_text(encoding="utf-8")
    assert written[0] == tmp_path / "report.md"
    linked = {tmp_path / link for link in re.findall(r"\((figures/[^)]+)\)", page)}
    assert linked == set(written[1:]) == set((tmp_path / "figures").iterdir())
    assert len(linked) == 3 + 2 * 7
    assert "| SPT-LoRA | 27 | 42 | 13.50% | 75.0% |" in page


def test_one_result_has_a_table_and_no_figure(allocation: Allocation, tmp_path: Path) -> None:
    row = ComparisonRow.of(allocation, method="SPT-LoRA", last_accuracy=0.75, seeds=[0])
    names = {path.name for path in write_report(tmp_path, allocation, comparison=[row])}
    assert "comparison.csv" in names
    assert "accuracy.png" not in names


def test_what_was_not_measured_is_left_out(allocation: Allocation, tmp_path: Path) -> None:
    written = write_report(tmp_path, allocation)
    assert {path.stem for path in written} == {
        "report",
        "allocation_by_operation",
        "allocation_by_block",
        "trainable_heat_map",
        "trainable_by_block",
        "trainable_by_operation",
    }


def test_a_run_that_trains_only_the_head_has_a_report_without_figures(allocation: Allocation, tmp_path: Path) -> None:
    head_only = dataclasses.replace(allocation, structured={}, vectors=(), sparse={}, always_trained=())
    page = write_report(tmp_path, head_only)[0].read_text(encoding="utf-8")
    assert "![" not in page


def test_a_second_report_replaces_the_first(allocation: Allocation, tmp_path: Path) -> None:
    assert write_report(tmp_path, allocation) == write_report(tmp_path, allocation)


def test_a_full_disk_leaves_nothing_half_written(
    allocation: Allocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"\x89PNG")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_report(tmp_path, allocation)
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".csv"}
    assert not (tmp_path / "report.md").exists()
