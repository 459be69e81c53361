"""The ``sensitune`` command: what it can say about itself without the library, and the way to the subcommands.

Importing `sensitune` takes seconds (torch, transformers and PEFT), so this module lies beside the package: ``--help``,
``--version`` and a mistyped command are answered without it. A mistake of the user's is one sentence on standard error
and exit code 2; so is an interruption, with exit code 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP), even one while the
libraries load. ``SENSITUNE_DEBUG=1`` shows the traceback.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module

COMMANDS = {
    "demo": "the whole method on a real model and real photographs, within 10 minutes on a CPU",
    "run": "all stages on your own images: score, allocate, train, test",
    "sensitivity": "first stage alone: score every parameter",
    "allocate": "second stage alone: decide what is tuned under the budget",
    "train": "third stage alone: train the adapter and the head",
    "evaluate": "test the trained adapter of a run once more, from its files",
    "sweep": "many runs from one file: tasks, methods, budgets and seeds, to the field's table",
    "view": "a finished run as one page for the browser: where its parameters went",
    "predict": "classes of image files as CSV, from an adapter folder",
    "advise": "where plain LoRAs belong, for PEFT, TRL, axolotl and LLaMA-Factory",
    "export": "a trained adapter as plain LoRA, for PEFT, trainers and servers without Sensitune",
    "merge": "fold an adapter into its backbone: one plain checkpoint",
    "backbones": "the published backbones by short name, with licences and addresses",
    "data": "get a benchmark onto the disk: VTAB-1k from its sources, the hub or an archive",
    "doctor": "what is installed, what is missing and how to get it, and the devices",
    "completion": "a script with which bash, zsh or fish completes commands and options",
    "sites": "what of a model can be tuned, and what stays frozen and why",
}
_SHARED = ("run", "sensitivity", "allocate", "train", "evaluate")
"""What several processes do together, as torchrun and ``accelerate launch`` start them."""


# PEFT imports torchao and bitsandbytes where they are installed, and they have remarks to make about themselves.
_CHATTY = ("torch.utils._pytree", "bitsandbytes")
# PEFT asks transformers' models for a property by its old name; whoever types a command cannot help that.
_READ_BY_PEFT = "`is_gradient_checkpointing` is deprecated"


class _Stopped(KeyboardInterrupt):
    """A signal that asks the process to end."""


class _Signals:
    """The signals that end a command: Ctrl-C, what `kill` and batch systems send, and a terminal that is closed."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at_once = False
        self._in_hook = False
        self._later: threading.Timer | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Have them raise `_Stopped` in the main thread; one that is ignored (as by nohup) stays so."""
        self.received = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ending = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {each: signal.getsignal(each) for each in ending}
        hook = sys.unraisablehook
        try:
            for each, handler in before.items():
                if handler is not signal.SIG_IGN:
                    signal.signal(each, self._stop)
            sys.unraisablehook = self._again
            yield
        finally:
            self._forget()
            sys.unraisablehook = hook
            for each, handler in before.items():
                if handler is not None:  # one that is none of Python's
                    signal.signal(each, handler)

    def _forget(self) -> None:
        if self._later is not None:
            self._later.cancel()
        self._later = None

    @contextmanager
    def end_at_once(self) -> Iterator[None]:
        """End the process where libraries are loaded: they may swallow an exception, and nothing is to be tidied up."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _stop(self, number: int, _: object) -> None:
        if self.received is not None and number != signal.SIGINT:
            return  # it is ending already
        self.received = self.received or signal.Signals(number)
        if self._at_once:
            os._exit(self.end())
        if self._in_hook:  # where it would be dropped once more: on a busy machine the hook takes longer than the timer
            self._raise_later()
            return
        raise _Stopped

    def _again(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Python drops what is raised in a destructor or a callback, this one too: it is raised again elsewhere."""
        if isinstance(unraisable.exc_value, _Stopped):
            self._in_hook = True
            try:
                self._raise_later()
            finally:
                self._in_hook = False
        else:
            sys.__unraisablehook__(unraisable)

    def _raise_later(self) -> None:
        self._later = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
        self._later.start()

    def end(self) -> int:
        """Say that the command was interrupted; return its exit code."""
        _say("Interrupted. The same command goes on where it stopped.")
        return 128 + (self.received or signal.SIGINT)


_SIGNALS = _Signals()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: What follows ``sensitune``; None takes the process's own.

    Returns:
        The exit code: 0 if all went well, 2 for a mistake of the user's, 128 and the signal's number if interrupted.

    Raises:
        Exception: A mistake of ours; and with ``SENSITUNE_DEBUG=1`` the user's too, to show where it was noticed.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character gets its number
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        with _SIGNALS.caught():
            return _answered(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as end:  # from the parser: --help, or arguments it cannot make sense of
        return end.code if isinstance(end.code, int) else 2
    except KeyboardInterrupt:
        return _SIGNALS.end()


def _answered(arguments: list[str]) -> int:
    """Run a command line; a mistake is a sentence and exit code 2."""
    # The signals are still caught: where several processes work together, a launcher ends the one that speaks, too.
    try:
        return _dispatch(arguments)
    except Exception as error:
        if _SIGNALS.received is not None:  # what a library made of it, such as of its own processes' end
            return _SIGNALS.end()
        said = _sentence(error)
        if said is None or os.environ.get("SENSITUNE_DEBUG") == "1":
            raise
        _say(f"error: {_shown(said)}")
        return 2


def _say(sentence: str) -> None:
    """One line on standard error; of several processes that work together, one says something."""
    processes = sys.modules.get("sensitune._processes")
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    first = os.environ.get("RANK", "0") == "0"
    if alone or (first if processes is None else processes.VOICE.is_ours()):
        with suppress(OSError):  # the terminal may be gone
            sys.stderr.write(f"{sentence}\n")
            sys.stderr.flush()


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
        from importlib.metadata import version

        sys.stdout.write(f"sensitune {version('sensitune')}\n")
        return 0
    if command not in COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(command, COMMANDS, n=1, cutoff=0.0)[0]
        sys.stderr.write(
            f"error: {command!r} is not a command. The closest one is {close!r}; see `sensitune --help`.\n"
        )
        return 2
    count = os.environ.get("WORLD_SIZE", "1")
    if count.isdecimal() and int(count) > 1 and "RANK" in os.environ and command not in _SHARED:
        _say(
            f"error: `sensitune {command}` is for one process, and {count} were started. Start it without the "
            f"launcher. Processes share: {', '.join(_SHARED)}."
        )
        return 2
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", _READ_BY_PEFT, FutureWarning)
    with _SIGNALS.end_at_once():
        run = import_module(f"sensitune.cli._{command}").main
    run(rest)
    return 0


def _sentence(error: Exception) -> str | None:
    """What to say of a mistake of the user's or of the machine's limits; None for one of ours."""
    errors = sys.modules.get("sensitune.errors")  # where it is not loaded, no sentence is ours
    if errors is not None and isinstance(error, (errors.SensituneError, OSError)):
        return str(errors.describe(error))
    if isinstance(error, OSError):
        return str(error)
    no_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and no_memory):
        return "There is not enough memory. Use smaller batches or smaller images."
    return None


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
