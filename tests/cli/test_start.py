"""What the command costs before it does anything, and what it is said to offer.

Costs are modules imported, not seconds, which depend on the machine.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sensitune_command import COMMANDS, main

REPOSITORY = Path(__file__).parents[2]
OPTION = re.compile(r"(?<!\w)--[a-z][a-z.-]*")
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


def test_what_is_installed_holds_the_module_that_the_command_starts_in() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["sensitune"].partition(":")
    assert f"src/{module}.py" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert callable(getattr(importlib.import_module(module), function))


def test_every_option_that_the_pages_show_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
    offered = set(OPTION.findall(capsys.readouterr().out)) | {"--version"}
    for page in ("README.md", "docs/recipes.md"):
        text = (REPOSITORY / page).read_text(encoding="utf-8").replace("\\\n", " ")
        lines = re.findall(r"^    sensitune .*$", text, re.MULTILINE)
        code = re.findall(r"`(?!python)([^`]*--[^`]*)`", text)
        shown = {option for part in (*lines, *code) for option in OPTION.findall(part)}
        assert len(shown) > 3
        assert shown - offered == set(), page
