"""Commands that are killed at any moment, and started again until they end: as if nothing had happened.

A handful of kills each under `pytest -m slow`; as many as one likes by hand:

    SENSITUNE_KILLS=50 pytest -m slow -s tests/cli/test_kills.py
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from sensitune_command import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
KILLS = int(os.environ.get("SENSITUNE_KILLS", "4"))
ENDING = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130}
# What is measured anew, or says how a training went on.
_TIMES = {"seconds", "resumed_after"}


def start(arguments: list[str]) -> int:
    """A process of its own that runs the command; its libraries are loaded already."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silent, stream)
        torch.set_num_threads(1)
        code = main(arguments)
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Its exit code; that of a signal is negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(child: int, seconds: float, number: signal.Signals) -> int | None:
    """End it with a signal after a while; None if it had ended before, or was so near its end that it got there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            assert os.waitstatus_to_exitcode(status) == 0
            return None
        time.sleep(0.002)
    os.kill(child, number)
    killed = time.monotonic()
    code = wait(child)
    return None if code == 0 and time.monotonic() - killed < 1 else code


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in _TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def content(path: Path) -> object:
    """What must be the same: every bit, but of a JSON file's the times, and of a picture of them that it is there."""
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "sensitivity.safetensors":  # its document says how long the scoring took
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        document = json.loads(json.loads(content[8:end])["__metadata__"]["sensitune"])
        return without_times(document), hashlib.sha256(content[end:]).hexdigest()
    if path.suffix in {".png", ".svg", ".csv", ".md", ".tex"}:
        return path.stat().st_size > 0
    return hashlib.sha256(path.read_bytes()).hexdigest()


def everything(folder: Path) -> dict[str, object]:
    return {str(path.relative_to(folder)): content(path) for path in folder.rglob("*") if path.is_file()}


def leftovers(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith(".")]


def kill_at_random(command: Callable[[Path], list[str]], folder: Path, kills: int) -> None:
    started = time.monotonic()
    assert wait(start(command(folder / "whole"))) == 0
    duration = time.monotonic() - started
    expected = everything(folder / "whole")
    assert leftovers(folder / "whole") == []
    generator, number, runs = random.Random(0), 0, 0
    while number < kills:
        runs += 1
        place, tidy = folder / f"killed-{runs}", True
        while True:
            asked = generator.choice(list(ENDING))
            code = kill_after(start(command(place)), generator.uniform(0, duration), asked)
            if code is None:
                break
            number += 1
            assert code == ENDING[asked]
            tidy &= asked != signal.SIGKILL  # what that leaves is swept when a command gets as far as writing there
            if tidy:
                assert leftovers(place) == []
        assert wait(start(command(place))) == 0
        assert everything(place) == expected
        assert leftovers(place) == []
    print(f"{number} kills of {command.__name__} over {runs} folders, {duration:.1f} s each")  # noqa: T201 (-s shows it)


def test_a_run_that_is_killed_ends_as_if_nothing_had_happened(settings: list[str], tmp_path: Path) -> None:
    def run(folder: Path) -> list[str]:
        return ["run", *settings, "--budget", "9_000", "--output", str(folder)]

    kill_at_random(run, tmp_path, KILLS)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_that_is_killed_ends_as_if_nothing_had_happened(
    workers: int, settings: list[str], squares: Path, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    shared = {
        "backbone": {"name": "vit_tiny_patch16_224", "pretrained": False, "image_size": 32, "num_blocks": 2},
        "sensitivity": {"num_batches": 2, "batch_size": 4},
        "recipe": {"epochs": 2, "batch_size": 8},
        "compute": {"device": "cpu"},
    }
    methods = {
        "SPT-LoRA": {"allocation": {"method": "spt-lora", "budget": 9_000, "rank": 4}},
        "Head": {"allocation": {"method": "head"}},
    }
    values = {"tasks": {"natural": [str(squares)]}, "methods": methods, "run": shared, "seeds": [0]}
    file.write_text(yaml.safe_dump(values | {"choose": {"recipe.learning_rate": [0.001, 0.003]}}))

    def sweep(folder: Path) -> list[str]:
        return ["sweep", str(file), "--output", str(folder), "--workers", str(workers)]

    kill_at_random(sweep, tmp_path, KILLS)
