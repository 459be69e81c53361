"""Command-line arguments -> the same values that the Python API takes."""

from __future__ import annotations

import argparse
import functools
import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, get_args

import tyro

from sensitune.cli._options import filled, names_as_given, options_of, read_options
from sensitune.errors import ConfigError
from sensitune.runs import METHODS, AllocationSettings, PresetName, RunConfig, RunFolder, preset_settings

T = TypeVar("T")
_LONGEST = 400
_NO_NUMBER = {
    r"invalid literal for int\(\) with base 10: (.*)": "a whole number",
    "could not convert string to float: (.*)": "a number",
    r"no type matching \{None\}\|INT could be instantiated from \[(.*?)\]\..*": "a whole number, or None",
    r"no type matching \{None\}\|FLOAT could be instantiated from \[(.*?)\]\..*": "a number, or None",
}

if TYPE_CHECKING:
    _Options = Any
else:
    _Options = options_of(RunConfig)


@dataclass(frozen=True)
class _Typed:
    """What the parser reads."""

    settings: Annotated[_Options, tyro.conf.arg(name="")]
    output: Path | None = None
    """Run folder; made if it is missing, gone on with if it is there. Default: runs/DATA-METHOD."""
    preset: PresetName | None = None
    """Settings of SPT's methods by name: best, with which LoRAs start along the gradient and values tuned in place
    learn at a tenth of the rate (the default of spt-lora and spt-adapter, unless there is a file with settings), or
    paper, the published ones; other options override it."""
    config: Path | None = None
    """YAML file with settings, such as another run's run.yaml; options on the command line override it."""


@dataclass(frozen=True)
class _TypedForAll(_Typed):
    """What the parser reads of the command that goes through all stages."""

    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write nothing on standard output; what goes wrong still stands on standard error."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write one JSON object on standard output when all is done, and nothing else: the result and where it lies."""


OPTIONS_OF_A_RUN: Final[Mapping[str, type[_Typed]]] = {"run": _TypedForAll, "sensitivity": _Typed}
"""What the parser reads of the commands that take all of a run's settings."""


@dataclass(frozen=True)
class AskedRun:
    """The run that a command line means.

    Attributes:
        folder: Where it lives.
        config: Its settings.
        quiet: Whether to write nothing on standard output.
        json: Whether to write one JSON object there, and nothing else.
    """

    folder: Path
    config: RunConfig
    quiet: bool = False
    json: bool = False


def parse(function: Callable[..., T], arguments: Sequence[str], *, command: str) -> T:
    """Call a function with its arguments from the command line.

    Args:
        function: Annotated and documented; a dataclass is one too.
        arguments: What follows the command.
        command: Its name.

    Returns:
        What the function returns.
    """

    # Called behind the parser's back: only what the parser itself says is put in other words.
    @functools.wraps(function)
    def read(*positional: Any, **named: Any) -> Callable[[], T]:
        return functools.partial(function, *positional, **named)

    return _parsed(read, arguments, command=command)()


def _parsed(parser: Callable[..., T], arguments: Sequence[str], *, command: str, **options: Any) -> T:
    """What tyro makes of the arguments; what it cannot make sense of is one sentence, without its box and its help."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            parsed: T = tyro.cli(parser, args=list(arguments), prog=f"sensitune {command}", **options)
            return parsed
    except SystemExit as end:
        if end.code in {None, 0}:
            raise
        raise ConfigError(f"{_plain_words(said.getvalue())} See `sensitune {command} --help`.") from None


def _plain_words(box: str) -> str:
    """The first part of what stands in a box: one with a frame, or with rules of minus signs alone."""
    lines = [line.strip("│").rstrip() for line in box.splitlines() if line.strip("│ ") and line[0] not in "╭╰"]
    lines = textwrap.dedent("\n".join(lines if "╭" in box else lines[2:])).splitlines()
    end = next((index for index in range(len(lines)) if _is_rule(lines[index : index + 1])), len(lines))
    # What is indented deeper is a help text.
    said = " ".join(line.strip() for line in lines[:end] if not line.startswith(" " * 8)) or box.strip()
    for pattern, kind in _NO_NUMBER.items():
        said = re.sub(rf"Error parsing (\S+): {pattern}", rf"`\1` must be {kind}. Got \2", said)
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in said)
    return f"{shown[:_LONGEST].rstrip('.')}."


def _is_rule(line: Sequence[str]) -> bool:
    return bool(line) and set(line[0].strip()) <= {"─", "-"}


@contextmanager
def asked_run(arguments: Sequence[str], *, command: str, description: str) -> Iterator[AskedRun]:
    """The run that a command line means; errors inside name its settings as they were typed.

    Settings come, from weak to strong, from the defaults, from the ``run.yaml`` of an existing folder or the file of
    ``--config``, from ``--preset``, and from the command line. A file's settings are meant as they stand: only a run
    that starts without one takes the default preset.

    Args:
        arguments: What follows the command.
        command: Its name.
        description: What it does, for its help.

    Yields:
        Where the run lives, and its settings.
    """
    known = _look_ahead(arguments)
    given = _settings_of_file(known)
    with names_as_given(arguments, from_file=given is not None):
        defaults = _with_preset({} if given is None else given, known, new=given is None)
        typed = OPTIONS_OF_A_RUN[command]
        parsed = _parsed(
            typed,
            arguments,
            command=command,
            description=description,
            default=typed(filled(_Options, defaults), known.output, None, known.config),
        )
        config = read_options(parsed.settings)
        default_name = f"{Path(config.data.source).name}-{config.method.name}"
        said = (parsed.quiet, parsed.json) if isinstance(parsed, _TypedForAll) else ()
        yield AskedRun(parsed.output or Path("runs") / default_name, config, *said)


def _look_ahead(arguments: Sequence[str]) -> argparse.Namespace:
    """What decides the defaults of the parser proper, which refuses what makes no sense here."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--output", type=Path)
    first.add_argument("--preset")
    first.add_argument("--method")
    found = argparse.Namespace(config=None, output=None, preset=None, method=None)
    with suppress(argparse.ArgumentError):
        first.parse_known_args(list(arguments), found)
    return found


def _settings_of_file(known: argparse.Namespace) -> dict[str, Any] | None:
    if known.config is not None:
        return RunConfig.from_yaml(known.config).to_dict()
    if known.output is not None and (known.output / "run.yaml").exists():
        return RunFolder.load(known.output).config.to_dict()
    return None


def _with_preset(values: dict[str, Any], known: argparse.Namespace, *, new: bool) -> dict[str, Any]:
    """Settings with those of the preset that was asked for, or of the method's default one where the run is new."""
    name = known.method or values.get("allocation", {}).get("method", AllocationSettings.method)
    if name not in METHODS:
        return values
    method = METHODS[name]
    preset = known.preset if known.preset in get_args(PresetName) else None
    preset = preset or (method.default_preset if new else None)
    return values if preset is None else _merged(values, preset_settings(method, preset))


def _merged(values: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {**values, **{name: {**values.get(name, {}), **changes} for name, changes in groups.items()}}
