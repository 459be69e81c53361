"""``sensitune doctor`` says what is there, what is missing and how to get it."""

from __future__ import annotations

import os
from importlib.metadata import version

import pytest
import torch

from sensitune import _installed
from sensitune_command import main


def shown(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    assert main(["doctor"]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_every_needed_package_stands_with_its_release_and_its_bound(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys)
    for package in _installed.packages(None):
        assert [package.name, version(package.name), package.needed] in lines
    assert lines[0][:2] == ["sensitune", f"{version('sensitune')},"]


def test_a_missing_extra_stands_with_the_line_that_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _installed._version
    monkeypatch.setattr(_installed, "_version", lambda package: None if package == "ray" else found(package))
    assert ["ray", "lacks", "ray:", "pip", "install", "'sensitune[ray]'"] in shown(capsys)


def test_an_extra_that_is_too_old_stands_with_what_is_needed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _installed._version
    monkeypatch.setattr(_installed, "_version", lambda package: "0.1" if package == "ray" else found(package))
    (line,) = (line for line in shown(capsys) if line[:1] == ["ray"])
    assert line[1:3] == ["needs", "ray"]
    assert line[4:] == ["found", "0.1:", "pip", "install", "'sensitune[ray]'", "--upgrade"]


def test_devices_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys)
    assert ["cpu", *f"{os.cpu_count()} cores, {torch.get_num_threads()} threads".split()] in lines
    assert any(line[:1] == ["cuda"] for line in lines) == (not torch.cuda.is_available())
