from __future__ import annotations

import io

from rich.console import Console

from sensitune.cli._console import reporting


def test_a_pipe_sees_no_bars() -> None:
    output = io.StringIO()
    with reporting(Console(file=output)) as reporter:
        reporter.stage("Training")
        reporter.step(1, 2, "epoch 1/1")
    assert output.getvalue() == ""


def test_the_demo_reports_lines_to_a_pipe_once_an_epoch() -> None:
    output = io.StringIO()
    with reporting(Console(file=output), always=True) as reporter:
        reporter.stage("Training")
        for step in range(4):
            reporter.step(step, 4, f"epoch {step // 2 + 1}/2")
    assert output.getvalue() == "Training\n  epoch 1/2\n  epoch 2/2\n"


def test_a_terminal_sees_a_bar() -> None:
    output = io.StringIO()
    with reporting(Console(file=output, force_terminal=True, width=100)) as reporter:
        reporter.stage("Training")
        reporter.step(1, 4, "epoch 1/2")
    assert "Training" in output.getvalue()
    assert "1/4" in output.getvalue()
    assert "epoch 1/2" in output.getvalue()
