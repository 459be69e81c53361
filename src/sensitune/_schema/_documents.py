"""YAML and JSON files -> plain values, with limits, and back: whatever a file holds, it is read soon or refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Final

import yaml

from sensitune._files import atomic_write
from sensitune._schema._mistakes import show_path
from sensitune.errors import ConfigError, SensituneError

_LARGEST_YAML: Final = 2**18  # bytes; the parser is slow, and no settings are so long
_DEEPEST_YAML: Final = 20
_LARGEST_JSON: Final = 2**26
_LARGEST_NUMBER: Final = 2**63  # whole numbers from there on fit no tensor, and Python writes no very long ones
_LONGEST_REASON: Final = 200


def read_yaml(path: str | os.PathLike[str], *, error: type[SensituneError] = ConfigError) -> dict[str, Any]:
    """Read a YAML file of settings.

    Numbers, true, false and null are as in YAML 1.2 (``1e-3`` is a number, ``yes``, ``010`` and ``2026-01-01`` are
    text), with ``_`` between digits. Aliases, tags for other types and repeated keys are refused.

    Args:
        path: The file, UTF-8, at most 256 KiB.
        error: The class of error to raise.

    Returns:
        Setting -> value.

    Raises:
        SensituneError: Of the class `error`, in one sentence that names the file, if it cannot be read.
    """
    values = _parse(path, _LARGEST_YAML, _load_yaml, error)
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {_JSON_NAMES.get(type(values), type(values).__name__)}"
        raise error(f"{show_path(path)} must be lines of `setting: value`. It holds {found}.")
    return values


def read_json(path: str | os.PathLike[str], *, error: type[SensituneError] = ConfigError) -> Any:
    """Read a JSON file.

    Args:
        path: The file, UTF-8, at most 64 MiB.
        error: The class of error to raise.

    Returns:
        Its value.

    Raises:
        SensituneError: Of the class `error`, in one sentence that names the file, if it cannot be read.
    """
    return _parse(path, _LARGEST_JSON, parse_json, error)


def read_json_lines(path: str | os.PathLike[str], *, error: type[SensituneError] = ConfigError) -> list[Any]:
    """Read a file of one JSON value a line; blank lines are passed over.

    Args:
        path: The file, UTF-8, at most 64 MiB.
        error: The class of error to raise.

    Returns:
        The values.

    Raises:
        SensituneError: Of the class `error`, in one sentence that names file and line, if it cannot be read.
    """
    return _parse(path, _LARGEST_JSON, _parse_lines, error)  # type: ignore[no-any-return]


def parse_json(text: str) -> Any:
    """Parse JSON, refusing repeated keys and whole numbers of more than 64 bits.

    Args:
        text: The document.

    Returns:
        Its value.

    Raises:
        ValueError: If it is none.
    """
    return json.loads(text, object_pairs_hook=_without_repeats, parse_int=_small_int)


def parse_yaml(text: str) -> Any:
    """Parse YAML as `read_yaml` does.

    Args:
        text: The document.

    Returns:
        Its value.

    Raises:
        ValueError: If it is none, or holds what `read_yaml` refuses.
    """
    if len(text) > _LARGEST_YAML:
        raise ValueError(f"it is larger than {_LARGEST_YAML // 1024:,} KiB")
    try:
        return _load_yaml(text)
    except yaml.YAMLError as found:
        raise ValueError(_describe_yaml(found)) from found


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file, whole or not at all.

    Args:
        path: The file.
        value: What `sensitune._schema.to_plain` returns, or other plain values.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def dump_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML that `read_yaml` reads back as they were.

    Args:
        values: Setting -> value, in the order they shall have.

    Returns:
        The document.
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _parse(path: str | os.PathLike[str], largest: int, parse: Callable[[str], Any], error: type[SensituneError]) -> Any:
    name = show_path(path)
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("it is no file")
        with open(path, "rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise ValueError(f"it is larger than {largest // 1024:,} KiB")
        return parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as found:
        reason = f"byte {found.start} is not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except OSError as found:
        reason = found.strerror or str(found)
    except yaml.YAMLError as found:
        reason = _describe_yaml(found)
    except ValueError as found:
        reason = str(found)
    raise error(f"{name} cannot be read: {reason[:_LONGEST_REASON]}.")


def _parse_lines(text: str) -> list[Any]:
    values = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            values += [parse_json(line)] if line.strip() else []
        except RecursionError:
            raise ValueError(f"line {number}: it is nested too deeply") from None
        except ValueError as found:
            raise ValueError(f"line {number}: {found}") from None
    return values


def _describe_yaml(found: yaml.YAMLError) -> str:
    mark = getattr(found, "problem_mark", None)
    problem = getattr(found, "problem", None) or str(found).splitlines()[0]
    return problem if mark is None else f"{problem} in line {mark.line + 1}, column {mark.column + 1}"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {repeated!r} twice")
    return values


def _small_int(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= _LARGEST_NUMBER:
        raise ValueError(f"it holds a whole number of {len(digits):,} digits")
    return int(digits)


_JSON_NAMES = {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)$|\.nan$"
)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$")
_TAG = "tag:yaml.org,2002:"
_RESOLVERS = (
    ("null", re.compile(r"(?:null|Null|NULL|~|)$"), ["n", "N", "~", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without what can make a short file a large value, or a word something else."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (so it is in PyYAML)
    yaml_constructors = {  # noqa: RUF012 (likewise)
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in {"null", "bool", "int", "float", "str", "seq", "map"}
    }

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="an alias (*) is not allowed", problem_mark=event.start_mark)
        self._depth += 1
        if self._depth > _DEEPEST_YAML:
            raise ValueError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = "a key must be text (put it in quotes)"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            if key in keys:
                raise yaml.MarkedYAMLError(problem="a key is there twice", problem_mark=key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return _small_int(self.construct_scalar(node).replace("_", ""))


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes what YAML 1.1 would misread, and what 1.2 would too."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # Between other quotes it writes line ends as they are, which are then read as spaces.
        return self.represent_scalar(f"{_TAG}str", text, style=None if text.isprintable() else '"')


_Loader.yaml_constructors[f"{_TAG}int"] = _Loader.construct_yaml_int
_Dumper.add_representer(str, _Dumper.represent_text)
for _name, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, _pattern, _first)


def _load_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)
