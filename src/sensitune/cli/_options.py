"""Every setting of a run as an option: the groups' own dataclasses, under the names that people type.

The parser sees copies of the dataclasses without their checks, so that a required setting may still be missing, and
what it finds is then read like a file. The settings that everybody uses have short names; the others are
``--group.name``. A message about a setting names it as the user gave it.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, Final, Literal, get_type_hints

import tyro

from sensitune._schema import parse_json, read
from sensitune.errors import ConfigError, SensituneError
from sensitune.runs import METHODS, RunConfig

SHORT_NAMES: Final = {
    "backbone.name": "model",
    "backbone.head": "head",
    "data.source": "data",
    "allocation.method": "method",
    "allocation.budget": "budget",
    "allocation.rank": "rank",
    "recipe.epochs": "epochs",
    "recipe.batch_size": "batch-size",
    "recipe.learning_rate": "learning-rate",
    "compute.device": "device",
}
# What the parser can read where it cannot read the setting's own type, or not show its choices.
_PARSED_AS: Final = {"allocation.method": Literal[tuple(METHODS)], "allocation.peft": str | None}
# Settings whose last name alone means something else in many messages.
_WORDS: Final = frozenset({"head", "name", "source", "test"})


def options_of(cls: type, where: str = "") -> type:
    """A dataclass of settings as the parser is to see it.

    Args:
        cls: The dataclass.
        where: Dotted name of the group that it is; empty for a run's whole settings.

    Returns:
        A dataclass of the same fields with their texts and short names, and without checks.
    """
    hints, texts = get_type_hints(cls, include_extras=True), _texts(cls)
    made: list[tuple[str, Any, Any]] = []
    for each in fields(cls):
        name = _join(where, each.name)
        if is_dataclass(hints[each.name]):
            inner = options_of(hints[each.name], name)
            made.append((each.name, inner, field(default_factory=inner)))
            continue
        short = SHORT_NAMES.get(name)
        option = tyro.conf.arg(help=texts[each.name], name=short, prefix_name=None if short is None else False)
        default = tyro.MISSING if each.default is MISSING else each.default
        made.append((each.name, Annotated[_PARSED_AS.get(name, hints[each.name]), option], field(default=default)))
    return make_dataclass(cls.__name__, made, frozen=True)


def filled(options: type, values: Mapping[str, Any]) -> Any:
    """The defaults that the parser shows.

    Args:
        options: From `options_of`.
        values: Setting -> value, groups as mappings; what is left out has the settings' own default.

    Returns:
        An instance of `options`.
    """
    kinds: dict[str, Any] = {each.name: each.type for each in fields(options)}
    given = {name: filled(kinds[name], value) if is_dataclass(kinds[name]) else value for name, value in values.items()}
    if isinstance(given.get("peft"), Mapping):
        given["peft"] = json.dumps(given["peft"])
    return options(**given)


def read_options(parsed: Any) -> RunConfig:
    """What the parser found, checked as settings.

    Args:
        parsed: An instance of the options of `RunConfig`.

    Returns:
        The settings.

    Raises:
        ConfigError: If they are none.
    """
    values = asdict(parsed)
    peft = values["allocation"]["peft"]
    if peft is not None and peft.lstrip().startswith("{"):
        try:
            values["allocation"]["peft"] = parse_json(peft)
        except ValueError as error:
            raise ConfigError(f"`allocation.peft` begins like JSON and is not JSON: {error}.") from error
    return read(RunConfig, values)


@contextmanager
def names_as_given(arguments: Sequence[str], *, from_file: bool) -> Iterator[None]:
    """Let the message of an error inside name settings as the user gave them.

    Args:
        arguments: What was typed: settings that are there are named by their flags.
        from_file: Whether there is a file, whose keys the other settings keep; without one they are flags too.

    Raises:
        SensituneError: The error, of its own class.
    """
    typed = {argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}

    def renamed(found: re.Match[str]) -> str:
        name = found.group(1)
        alike = [each for each in _settings() if each == name or (name not in _WORDS and each.endswith(f".{name}"))]
        if len(alike) != 1:
            return found.group(0)
        flag = flag_of(alike[0])
        return f"`{flag}`" if flag in typed or not from_file else f"`{alike[0]}`"

    try:
        yield
    except SensituneError as error:
        raise type(error)(re.sub(r"`([a-z_]+(?:\.[a-z_]+)*)`", renamed, str(error))) from error


def flag_of(setting: str) -> str:
    """What is typed for a setting, given by its dotted name."""
    return f"--{SHORT_NAMES.get(setting, setting.replace('_', '-'))}"


def _settings(cls: type = RunConfig, where: str = "") -> Iterator[str]:
    """The dotted names of all settings, and the options beside them."""
    hints = get_type_hints(cls)
    for each in fields(cls):
        name = _join(where, each.name)
        if is_dataclass(hints[each.name]):
            yield from _settings(hints[each.name], name)
        else:
            yield name
    if not where:
        yield "preset"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _texts(cls: type) -> dict[str, str]:
    """The text below each field of a dataclass, on one line."""
    (body,) = (node.body for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body if hasattr(node, "body"))
    texts = {}
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            texts[node.target.id] = " ".join(str(text).split())
    return texts
