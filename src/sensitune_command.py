"""The ``sensitune`` command: what it can say about itself without the library, and the way to the subcommands.

Importing `sensitune` takes seconds (torch, transformers and PEFT), so this module lies beside the package: ``--help``,
``--version`` and a mistyped command are answered without it. A mistake of the user's is one sentence on standard error
and exit code 2, an interruption exit code 130, even one while the libraries load; ``SENSITUNE_DEBUG=1`` shows the
traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version

COMMANDS = {
    "demo": "the whole method on a real model and real photographs, within 10 minutes on a CPU",
    "run": "all stages on your own images: score, allocate, train, test",
    "sensitivity": "first stage alone: score every parameter",
    "allocate": "second stage alone: decide what is tuned under the budget",
    "train": "third stage alone: train the adapter and the head",
    "evaluate": "test the trained adapter of a run once more, from its files",
    "sweep": "many runs from one file: tasks, methods, budgets and seeds, to the field's table",
    "predict": "classes of image files as CSV, from an adapter folder",
    "export": "a trained adapter as plain LoRA, for PEFT, trainers and servers without Sensitune",
    "merge": "fold an adapter into its backbone: one plain checkpoint",
    "backbones": "the published backbones by short name, with licences and addresses",
    "data": "get a benchmark onto the disk: VTAB-1k from its sources, the hub or an archive",
    "sites": "what of a model can be tuned, and what stays frozen and why",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: What follows ``sensitune``; None takes the process's own.

    Returns:
        The exit code: 0 if all went well, 2 for a mistake of the user's, 130 if interrupted.

    Raises:
        Exception: A mistake of ours; and with ``SENSITUNE_DEBUG=1`` the user's too, to show where it was noticed.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character gets its number
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as end:  # from the parser: --help, or arguments it cannot make sense of
        return end.code if isinstance(end.code, int) else 2
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. The same command goes on where it stopped.\n")
        return 130
    except Exception as error:
        if os.environ.get("SENSITUNE_DEBUG") == "1" or not _is_mistake_of_the_user(error):
            raise
        sys.stderr.write(f"error: {_shown(str(error))}\n")
        return 2


def _shown(message: str) -> str:
    """Without what a terminal would obey, for a message quotes names from outside."""
    from sensitune._text import visible  # loaded by now, where a name could have been read

    return "\n".join(map(visible, message.split("\n")))


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        sys.stdout.write(overview())
        return 0
    command, *rest = arguments
    if command == "--version":
        sys.stdout.write(f"sensitune {version('sensitune')}\n")
        return 0
    if command not in COMMANDS:
        close = get_close_matches(command, COMMANDS, n=1, cutoff=0.0)[0]
        sys.stderr.write(
            f"error: {command!r} is not a command. The closest one is {close!r}; see `sensitune --help`.\n"
        )
        return 2
    import_module(f"sensitune.cli._{command}").main(rest)
    return 0


def _is_mistake_of_the_user(error: Exception) -> bool:
    """Whether its message is a sentence for the user; where the errors' module is not loaded, nothing of ours is."""
    errors = sys.modules.get("sensitune.errors")
    return isinstance(error, OSError) or (errors is not None and isinstance(error, errors.SensituneError))


def overview() -> str:
    """What ``sensitune --help`` says."""
    lines = [f"  {name:<12} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sensitune COMMAND [OPTIONS]",
            "",
            "Find the weights of a vision model that matter for your images, and tune only those, under a budget.",
            "",
            *lines,
            "",
            "Start with `sensitune demo`, then `sensitune run --model vit_small_patch16_224 --data my_images`,",
            "where my_images holds one folder of images per class. `sensitune COMMAND --help` explains a command.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
