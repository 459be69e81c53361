"""A process that is lost, or that fails alone, ends the command of all with one sentence; the next start goes on.

Under torchrun itself: ``pytest -m slow tests/runs/test_lost_processes.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sensitune_command import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
SETTINGS = [
    *("--model", "vit_tiny_patch16_224", "--backbone.no-pretrained", "--backbone.image-size", "32"),
    *("--backbone.num-blocks", "1", "--rank", "4", "--device", "cpu", "--budget", "4_000"),
    *("--sensitivity.num-batches", "2", "--sensitivity.batch-size", "4", "--batch-size", "8"),
]
ENOUGH_TO_BE_CAUGHT = 300


def torchrun(arguments: list[str], errors: Path, processes: int = 2) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "-m", "sensitune"]
    with errors.open("wb") as stream:
        return subprocess.Popen(
            [*launcher, *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=stream,
        )


def until(condition: object, launcher: subprocess.Popen[bytes], errors: Path, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert launcher.poll() is None, errors.read_text()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def children(launcher: subprocess.Popen[bytes]) -> list[int]:
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = {}
    for process in map(int, found):
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        ranks |= {int(each[5:]): process for each in environment if each.startswith(b"RANK=")}
    return [ranks[rank] for rank in sorted(ranks)]


def sentences(errors: Path) -> list[str]:
    return [line for line in errors.read_text().splitlines() if line.startswith(("error:", "Interrupted."))]


@pytest.fixture
def errors(tmp_path: Path) -> Iterator[Path]:
    return tmp_path / "errors.txt"


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_is_killed_in_training_ends_all_and_the_next_start_goes_on(
    images: Path, tmp_path: Path, errors: Path, rank: int
) -> None:
    folder = tmp_path / "run"
    command = ["run", *SETTINGS, "--data", str(images), "--output", str(folder)]
    launcher = torchrun([*command, "--epochs", str(ENOUGH_TO_BE_CAUGHT)], errors)
    try:
        until(lambda: (folder / "checkpoints" / "checkpoint-6").exists(), launcher, errors)
        os.kill(children(launcher)[rank], signal.SIGKILL)
        assert launcher.wait(timeout=60) != 0
    finally:
        launcher.kill()
        launcher.wait()
    (said,) = sentences(errors)
    assert said.endswith("The same command goes on where it stopped.")
    done = len((folder / "metrics.jsonl").read_text().splitlines())
    assert 0 < done < ENOUGH_TO_BE_CAUGHT
    assert main(["train", str(folder)]) == 0  # in one process: it holds no lock that is left behind
    result = json.loads((folder / "training.json").read_text())
    assert done - 1 <= result["resumed_after"] <= done
    assert not list(folder.glob(".*"))


def test_a_mistake_that_one_alone_meets_is_said_once_by_it(images: Path, tmp_path: Path, errors: Path) -> None:
    data = tmp_path / "images"
    for name in ("blue", "green", "red"):
        (data / name).mkdir(parents=True)
        for image in (images / name).iterdir():
            (data / name / image.name).write_bytes(image.read_bytes())
    broken = data / "red" / "7.png"
    broken.write_bytes(broken.read_bytes()[:200])
    launcher = torchrun(
        ["run", *SETTINGS, "--data", str(data), "--output", str(tmp_path / "run"), "--epochs", "2"], errors
    )
    assert launcher.wait(timeout=200) != 0
    (said,) = sentences(errors)
    assert said.startswith(f"error: The image {broken} cannot be read")


def test_a_second_command_on_the_folder_is_told_who_works_there(images: Path, tmp_path: Path, errors: Path) -> None:
    folder = tmp_path / "run"
    command = ["run", *SETTINGS, "--data", str(images), "--output", str(folder), "--epochs", str(ENOUGH_TO_BE_CAUGHT)]
    first = torchrun(command, errors)
    try:
        until(lambda: (folder / "checkpoints" / "checkpoint-3").exists(), first, errors)
        holder = children(first)[0]
        second_errors = tmp_path / "second.txt"
        second = torchrun(command, second_errors)
        assert second.wait(timeout=120) != 0
        (said,) = sentences(second_errors)
        assert f"{folder} is being worked on by process {holder} on " in said
        assert first.poll() is None, "the first goes on"
    finally:
        first.terminate()
        first.wait(timeout=60)
    (said,) = sentences(errors)
    assert said == "Interrupted. The same command goes on where it stopped."
