"""Command-line arguments -> the same values that the Python API takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import tyro

from sensitune.cli._options import filled, names_as_given, options_of, read_options
from sensitune.runs import METHODS, AllocationSettings, PresetName, RunConfig, RunFolder, preset_settings

T = TypeVar("T")

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
class AskedRun:
    """The run that a command line means.

    Attributes:
        folder: Where it lives.
        config: Its settings.
    """

    folder: Path
    config: RunConfig


def parse(function: Callable[..., T], arguments: Sequence[str], *, command: str) -> T:
    """Call a function with its arguments from the command line.

    Args:
        function: Annotated and documented; a dataclass is one too.
        arguments: What follows the command.
        command: Its name.

    Returns:
        What the function returns.
    """
    return tyro.cli(function, args=list(arguments), prog=f"sensitune {command}")


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
        parsed: _Typed = tyro.cli(
            _Typed,
            args=list(arguments),
            prog=f"sensitune {command}",
            description=description,
            default=_Typed(filled(_Options, defaults), known.output, None, known.config),
        )
        config = read_options(parsed.settings)
        default_name = f"{Path(config.data.source).name}-{config.method.name}"
        yield AskedRun(parsed.output or Path("runs") / default_name, config)


def _look_ahead(arguments: Sequence[str]) -> argparse.Namespace:
    """What decides the defaults of the parser proper, which refuses what makes no sense here."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--output", type=Path)
    first.add_argument("--preset")
    first.add_argument("--method")
    return first.parse_known_args(list(arguments))[0]


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
