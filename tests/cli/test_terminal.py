from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from sensitune.cli._console import make_console, reporting, show_path
from sensitune_command import main


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


def test_names_are_printed_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console()
    console.print("cat[/] :smile: \x1b[2J\nnext")
    show_path(console, "written", Path("a\x1b[31m\udce9"))
    assert capsys.readouterr().out == "cat[/] :smile: \\x1b[2J\nnext\nwritten: a\\x1b[31m\\xe9\n"


def test_a_bar_shows_its_note_as_it_stands() -> None:
    output = io.StringIO()
    with reporting(Console(file=output, force_terminal=True, width=100, color_system=None)) as reporter:
        reporter.step(1, 4, "loss [/] \x07")
    assert r"loss [/] \x07" in output.getvalue()
    assert "\x07" not in output.getvalue()


def test_an_error_quotes_names_without_obeying_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path / "\x1b[2J"), "x.png"]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert r"\x1b[2J" in shown
