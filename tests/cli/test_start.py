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
    # Tests that run in the background of a shell, or under nohup, would hand on that they ignore Ctrl-C or a hang-up.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    heeding += "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    return subprocess.run([sys.executable, "-c", heeding + code], capture_output=True, text=True, check=False)


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


SENTENCE = "Interrupted. The same command goes on where it stopped.\n"
A_COMMAND = """
import os, signal, sys, time, types, sensitune_command

def main(arguments):
{body}

command = types.ModuleType("sensitune.cli._run")
command.main = main
sys.modules.update({{name: types.ModuleType(name) for name in ("sensitune", "sensitune.cli")}})
sys.modules["sensitune.cli._run"] = command
sys.exit(sensitune_command.main(["run"]))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_command_in_order_with_its_own_exit_code(name: str, code: int) -> None:
    body = f"""
    try:
        os.kill(os.getpid(), signal.{name})
    finally:
        print("tidied up", flush=True)
    """
    done = started(A_COMMAND.format(body=body))
    assert (done.returncode, done.stdout, done.stderr) == (code, "tidied up\n", SENTENCE)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_python_drops_or_a_library_turns_into_another_error_ends_it_too(name: str, code: int) -> None:
    dropped = f"""
    class Library:
        def __del__(self):
            os.kill(os.getpid(), signal.{name})
    Library()
    time.sleep(30)
    print("went on")
    """
    turned = f"""
    try:
        os.kill(os.getpid(), signal.{name})
    except KeyboardInterrupt:
        raise RuntimeError("a worker has died")
    """
    for body in (dropped, turned):
        done = started(A_COMMAND.format(body=body))
        assert (done.returncode, done.stdout, done.stderr) == (code, "", SENTENCE)


def test_a_signal_that_python_drops_ends_it_on_a_machine_that_is_slow_to_start_a_thread_too() -> None:
    body = """
    import threading
    at_once = threading.Timer.start

    def slowly(timer):
        threading.Timer.start = at_once
        at_once(timer)
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            pass

    threading.Timer.start = slowly

    class Library:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    Library()
    time.sleep(30)
    print("went on")
    """
    done = started(A_COMMAND.format(body=body))
    assert (done.returncode, done.stdout, done.stderr) == (143, "", SENTENCE)


def test_a_signal_while_the_library_loads_ends_it_whoever_would_swallow_it() -> None:
    code = """
import os, signal, sys, sensitune_command

class Swallows:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except BaseException:
                pass

sys.meta_path.insert(0, Swallows())
sys.exit(sensitune_command.main(["run", "--model", "m", "--data", "d"]))
"""
    done = started(code)
    assert (done.returncode, done.stderr) == (143, SENTENCE)


def test_a_signal_that_is_ignored_stays_so_and_handlers_are_put_back() -> None:
    body = """
    os.kill(os.getpid(), signal.SIGHUP)
    print("goes on")
    """
    code = A_COMMAND.format(body=body).replace("sys.exit(", "code = (").replace("def main", IGNORING + "def main")
    done = started(code + "\nprint(code, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)\n")
    assert done.stdout == "goes on\n0 True\n"


IGNORING = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"


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
