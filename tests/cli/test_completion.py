"""What a shell offers after ``sensitune``, asked of the shells themselves."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from sensitune.runs import METHODS
from sensitune_command import COMMANDS, main

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z.-]*")
Offers = Callable[..., set[str]]


def output_of(*arguments: str) -> str:
    with redirect_stdout(io.StringIO()) as output:
        assert main(list(arguments)) == 0
    return output.getvalue()


def found(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    return path


def lines_of(command: list[str], folder: Path) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def offers(tmp_path_factory: pytest.TempPathFactory) -> Offers:
    """What bash offers for the last of some words, in a folder with a file and a folder."""
    bash = found("bash")
    folder = tmp_path_factory.mktemp("completion")
    (folder / "script").write_text(output_of("completion", "bash"), encoding="utf-8")
    (folder / "here" / "photo folder").mkdir(parents=True)
    (folder / "here" / "photo.jpg").touch()
    asked = """
    source "$1"; shift
    [[ $(complete -p sensitune) =~ -F\\ ([^ ]+) ]]
    COMP_WORDS=(sensitune "$@"); COMP_CWORD=$#
    ${BASH_REMATCH[1]}
    printf '%s\\n' "${COMPREPLY[@]}"
    """

    def offered(*words: str) -> set[str]:
        start = [bash, "--noprofile", "--norc", "-c", asked, "bash", str(folder / "script")]
        return {line for line in lines_of([*start, *words], folder / "here") if line}

    return offered


def test_the_first_word_is_a_command(offers: Offers) -> None:
    assert offers("") == set(COMMANDS)
    assert offers("se") == {"sensitivity"}
    assert "--version" in offers("--")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_offered_and_no_other(offers: Offers, command: str) -> None:
    columns = re.findall(r"^ *(-\S.*?)(?:  |$)", output_of(command, "--help").replace("│", ""), re.MULTILINE)
    explained = {option for column in columns for option in OPTION.findall(column)}
    assert "--help" in explained
    assert offers(command, "--") == explained


def test_choices_are_offered_where_there_are_some(offers: Offers) -> None:
    assert offers("run", "--data", "x", "--method", "") == set(METHODS)
    assert offers("run", "--method", "spt") == {name for name in METHODS if name.startswith("spt")}
    assert offers("evaluate", "runs/mine", "--split", "") == {"test", "validation", "train"}
    assert offers("completion", "") == {"bash", "zsh", "fish"}


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "pho"),
        ("predict", "adapter", "first.jpg", "pho"),
        ("predict", "--device", "cpu", "adapter", "pho"),
        ("merge", "adapter", "--output", "pho"),
        ("run", "--config", "pho"),
        ("run", "--data", "pho"),
        ("run", "--backbone.checkpoint", "pho"),
        ("sweep", "recipe.yaml", "--root", "pho"),
        ("advise", "vit_tiny_patch16_224", "pho"),
    ],
)
def test_files_and_folders_are_offered_where_one_belongs(offers: Offers, words: tuple[str, ...]) -> None:
    assert offers(*words) == {"photo.jpg", "photo folder"}


def test_nothing_is_offered_where_only_the_user_knows(offers: Offers) -> None:
    assert offers("run", "--budget", "") == set()
    assert offers("run", "--budget", "pho") == set()


def test_fish_offers_the_same(tmp_path: Path) -> None:
    fish = found("fish")
    (tmp_path / "script").write_text(output_of("completion", "fish"), encoding="utf-8")
    (tmp_path / "photo.jpg").touch()

    def offered(line: str) -> set[str]:
        asked = f"source script; complete -C '{line}'"
        return {each.split("\t")[0] for each in lines_of([fish, "--no-config", "-c", asked], tmp_path)}

    assert offered("sensitune ") == set(COMMANDS)
    assert "--budget" in offered("sensitune run --bud")
    assert offered("sensitune run --method spt") == {name for name in METHODS if name.startswith("spt")}
    assert offered("sensitune merge pho") == {"photo.jpg"}


def test_zsh_can_read_its_script(tmp_path: Path) -> None:
    zsh = found("zsh")
    (tmp_path / "_sensitune").write_text(output_of("completion", "zsh"), encoding="utf-8")
    asked = "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; print -r -- $_comps[sensitune]"
    assert lines_of([zsh, "-f", "-c", asked], tmp_path) == ["_sensitune"]
    assert lines_of([zsh, "-f", "-n", "_sensitune"], tmp_path) == []
