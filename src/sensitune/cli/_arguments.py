"""Command-line arguments -> the same dataclasses that the Python API takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from sensitune.runs import DEFAULT_PRESETS, METHODS, PRESETS, PresetName, RunConfig, RunFolder, with_preset

T = TypeVar("T")


@dataclass(frozen=True)
class RunArguments:
    """Where a run lives, and its settings."""

    settings: Annotated[RunConfig, tyro.conf.arg(name="")]
    output: Path | None = None
    """Run folder; made if it is missing, gone on with if it is there. Default: runs/DATA-METHOD."""
    preset: PresetName | None = None
    """Settings of SPT's methods by name: best, with which LoRAs start along the gradient and values tuned in place
    learn at a tenth of the rate (the default of spt-lora and spt-adapter, unless there is a file with settings), or
    paper, the published ones; other options override it."""
    config: Path | None = None
    """YAML file with settings, such as another run's run.yaml; options on the command line override it."""

    @property
    def folder(self) -> Path:
        """The run folder, by its default name if none was given."""
        return self.output or Path("runs") / f"{Path(self.settings.data).name}-{self.settings.method}"


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


def parse_run(arguments: Sequence[str], *, command: str, description: str) -> RunArguments:
    """The run that a command line means.

    Settings come, from weak to strong, from the defaults, from the ``run.yaml`` of an existing folder or the file of
    ``--config``, from ``--preset``, and from the command line. A file's settings are meant as they stand: only a run
    that starts without one takes the default preset.

    Args:
        arguments: What follows the command.
        command: Its name.
        description: What it does, for its help.

    Returns:
        Where the run lives, and its settings.
    """
    return tyro.cli(
        RunArguments,
        args=list(arguments),
        prog=f"sensitune {command}",
        description=description,
        default=_default_arguments(arguments),
    )


def _default_arguments(arguments: Sequence[str]) -> RunArguments:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--output", type=Path)
    first.add_argument("--preset")
    first.add_argument("--method")
    known, _ = first.parse_known_args(list(arguments))
    output, config = known.output, known.config
    preset = known.preset if known.preset in PRESETS else None  # the parser proper refuses any other
    if config is not None:
        settings = RunConfig.from_yaml(config)
    elif output is not None and (output / "run.yaml").exists():
        settings = RunFolder.load(output).config
    else:
        settings = RunConfig(tyro.MISSING, tyro.MISSING)
        preset = preset or DEFAULT_PRESETS.get(known.method or settings.method)
    if preset is not None:
        if known.method in METHODS:  # else the parser proper refuses it
            settings = replace(settings, method=known.method)
        settings = with_preset(settings, preset)
    return RunArguments(settings, output=output, preset=preset, config=config)
