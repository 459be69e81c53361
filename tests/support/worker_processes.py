"""Processes of torch.distributed that a test module starts from its own file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_workers(script: str, folder: Path, *, count: int = 2, timeout: float = 120) -> None:
    """Run ``python SCRIPT RANK FOLDER`` for every rank at once, to the end of all; none is left when one fails."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-W", "ignore", script]
    workers = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(count)
    ]
    errors = []
    try:
        for worker in workers:
            errors.append(worker.communicate(timeout=timeout)[1])
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.communicate()
    assert not any(worker.returncode for worker in workers), errors
