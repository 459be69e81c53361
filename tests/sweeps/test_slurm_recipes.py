"""The batch scripts of recipes/slurm, with a Slurm of two nodes that is this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SRUN = """#!/bin/bash
# Two tasks, one on each node; the options of srun end where the command begins.
while [[ "$1" == --* ]]; do shift; done
"$@" & first=$!
"$@" & second=$!
wait $first && wait $second
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_on_two_nodes_is_one_run(images: Path, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"srun": SRUN, "scontrol": "#!/bin/bash\nprintf '127.0.0.1\\n127.0.0.2\\n'\n"}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_ID": "7"}
    paths = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    options = [
        *("--model", "vit_tiny_patch16_224", "--backbone.no-pretrained", "--backbone.image-size", "32"),
        *("--backbone.num-blocks", "1", "--rank", "4", "--device", "cpu", "--budget", "4_000"),
        *("--sensitivity.num-batches", "2", "--sensitivity.batch-size", "4", "--epochs", "1", "--batch-size", "8"),
    ]
    done = subprocess.run(
        [
            *("bash", str(REPOSITORY / "recipes" / "slurm" / "run.sbatch"), *options),
            *("--data", str(images), "--output", str(tmp_path / "run")),
        ],
        env=os.environ | slurm | {"PATH": paths, "OMP_NUM_THREADS": "1", "SENSITUNE_PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "training.json").read_text())["num_processes"] == 2
    assert done.stdout.count("adapter (last epoch)") == 1


@pytest.mark.parametrize("name", ["run.sbatch", "sweep.sbatch"])
def test_the_scripts_are_bash_and_say_how_they_are_called(name: str) -> None:
    script = REPOSITORY / "recipes" / "slurm" / name
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert f"recipes/slurm/{name}" in script.read_text()
