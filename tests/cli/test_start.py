"""What the command costs before it does anything: modules imported, not seconds, which depend on the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "peft", "transformers", "timm", "matplotlib", "rich", "tyro", "datasets", "yaml", "numpy")


def started(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["trian"]])
def test_what_the_command_says_about_itself_needs_no_library(arguments: list[str]) -> None:
    code = (
        f"import sys, sensitune_command; sensitune_command.main({arguments!r}); "
        f"print('imported:', [name for name in {('sensitune', *HEAVY)!r} if name in sys.modules])"
    )
    assert started(code).stdout.endswith("imported: []\n")


@pytest.mark.parametrize("command", ["run", "sweep", "merge", "predict"])
def test_the_help_of_a_command_draws_and_trains_nothing(command: str) -> None:
    unused = ("matplotlib", "datasets", "transformers.trainer", "ray", "onnx")
    code = (
        f"import sys, sensitune_command; code = sensitune_command.main([{command!r}, '--help']); "
        f"print('imported:', code, [name for name in {unused!r} if name in sys.modules])"
    )
    assert started(code).stdout.endswith("imported: 0 []\n")


def test_an_interruption_while_the_library_loads_is_a_sentence_too() -> None:
    code = """
import sys, sensitune_command

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
sys.exit(sensitune_command.main(["run", "--model", "m", "--data", "d"]))
"""
    done = started(code)
    assert (done.returncode, done.stderr) == (130, "Interrupted. The same command goes on where it stopped.\n")


def test_a_library_that_is_broken_shows_where() -> None:
    code = "import sys, sensitune_command; sys.modules['torch'] = None; sensitune_command.main(['run'])"
    done = started(code)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "import of torch halted" in done.stderr


def test_the_package_itself_can_be_run() -> None:
    done = subprocess.run([sys.executable, "-m", "sensitune", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sensitune 0.")
