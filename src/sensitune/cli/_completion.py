"""``sensitune completion``: a script with which a shell completes commands, options, their choices and file names."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final, Literal

import shtab
import tyro

from sensitune.cli._arguments import OPTIONS_OF_A_RUN, parse
from sensitune_command import COMMANDS

# Settings that are paths although their type is text: they may be names of a hub or a benchmark as well.
_PATHS: Final = frozenset({"checkpoint", "data", "root", "source"})


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(completion, arguments, command="completion")


def completion(shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]], /) -> None:
    """Write a script with which a shell completes what follows `sensitune`; nothing of Python runs when it does.

    Keep it where the shell looks for such scripts, and write it anew after an update:
    ~/.local/share/bash-completion/completions/sensitune for bash, ~/.config/fish/completions/sensitune.fish for fish,
    and for zsh _sensitune in a folder of its fpath.

    Args:
        shell: The shell.
    """
    sys.stdout.write(f"{shtab.complete(whole_parser(), shell)}\n")


def whole_parser() -> argparse.ArgumentParser:
    """Every command with its options, as one parser; it is described, never run.

    Returns:
        The parser.
    """
    whole = argparse.ArgumentParser("sensitune")
    whole.add_argument("--version", action="version", help="show the version")
    commands = whole.add_subparsers()
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, parents=[_options(name)])
    return whole


def _options(command: str) -> Any:
    """An argument parser, of tyro's copy of argparse."""
    module = import_module(f"sensitune.cli._{command}")
    described: Callable[..., Any] = OPTIONS_OF_A_RUN[command] if command in OPTIONS_OF_A_RUN else vars(module)[command]
    with warnings.catch_warnings():
        # tyro completes by itself, but no file names where there is no option before them. Once it does, or takes this
        # function away, its own script is the one to write.
        warnings.filterwarnings("ignore", message=r"get_parser\(\) is deprecated", category=DeprecationWarning)
        parser: Any = tyro.extras.get_parser(described, add_help=False)
    for action in parser._actions:
        if action.dest.rpartition(".")[2] in _PATHS and action.choices is None:
            action.complete = shtab.FILE
    return parser
