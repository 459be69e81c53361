"""What is wrong with a value, in one sentence: the setting's dotted name, the rule, the value, the way out."""

from __future__ import annotations

import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from reprlib import Repr
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from sensitune.errors import SensituneError

_LONGEST = 80
_LONGEST_REASON = 300
_LONGEST_PATH = 1000
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_UNKNOWN = {"unexpected_keyword_argument", "extra_forbidden"}


@dataclass(frozen=True)
class Problem:
    """What pydantic found.

    Attributes:
        kind: Its name for the mistake.
        path: Field names, keys and indices on the way to the value, with a tag of its own where a union is entered.
        cause: What a class's own check raised, or a parser said; None elsewhere.
    """

    kind: str
    path: tuple[int | str, ...]
    cause: object


def explain(problems: Sequence[Problem], cls: type, values: object, *, where: str, python: bool) -> str:
    """Say what is wrong, naming one mistake if there are several.

    Args:
        problems: What pydantic found, at least one.
        cls: The dataclass.
        values: What was to become one.
        where: Dotted name of the setting whose value that is; empty for none.
        python: Whether they are from a call in Python, which has other words than a file.

    Returns:
        A sentence.
    """
    # A misspelt key first: whatever else is wrong may follow from it. Then the most exact place.
    problem = min(problems, key=lambda each: (each.kind not in _UNKNOWN, -len(each.path)))
    if isinstance(problem.cause, SensituneError):
        return str(problem.cause)
    if problem.kind == "json_invalid":  # half of a surrogate pair, or a tower of lists
        return f"{_name(where)} holds what no JSON file may: {shorten(str(problem.cause))}."
    place = _follow(_Place(where, cls, values), problem.path, short_of=problem.kind in {*_UNKNOWN, "missing"})
    last = problem.path[-1] if problem.path else ""
    if problem.kind in _UNKNOWN:
        return _explain_unknown(place, str(last))
    if problem.kind == "missing" and isinstance(last, str):
        return f"The setting `{_join(place.name, last)}` is missing. Give it a value."
    rule = "a finite number" if problem.kind == "finite_number" else describe(place.hint, python=python)
    return f"{_name(place.name)} must be {rule}. Got {shorten(place.value)}."


def shorten(value: object) -> str:
    """A value for a message, with control characters escaped, in at most 80 characters.

    Args:
        value: Anything, however large.

    Returns:
        Its cut representation.
    """
    short = Repr()
    short.maxlevel, short.maxdict, short.maxlist, short.maxtuple = 3, 4, 4, 4
    short.maxstring = short.maxother = _LONGEST
    try:
        text = short.repr(value)
    except ValueError:  # Python refuses to write out whole numbers of thousands of digits
        text = f"a {type(value).__name__} of enormous size"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


@dataclass(frozen=True)
class _Place:
    """A value, its dotted name and what it should be."""

    name: str
    hint: Any
    value: object


def _follow(place: _Place, path: Sequence[int | str], *, short_of: bool) -> _Place:
    """Go down from a value to the one that a mistake is in, or to the one that holds it."""
    rest = list(path)
    while len(rest) > short_of and rest[0] != "[key]":
        hint = _without_none(place.hint)
        if _is_union(hint):
            inside = _branch(hint, place.value)
            if inside is None or len(rest) == 1:
                break  # none of the union's types fits: the rule is all of them
            place, rest = _Place(place.name, inside, place.value), rest[1:]
            continue
        place = _step(place, hint, rest.pop(0))
    return place


def _step(place: _Place, hint: Any, key: int | str) -> _Place:
    plain = _bare(hint)
    if is_dataclass(plain) and isinstance(plain, type):
        name, inner = _join(place.name, str(key)), get_type_hints(plain, include_extras=True)[str(key)]
    elif isinstance(place.value, Mapping):
        name, inner = _join(place.name, show_name(str(key))), (*get_args(plain), Any, Any)[1]
    else:
        kinds = get_args(plain) or (Any,)
        name = f"{place.name}[{key}]"
        inner = kinds[0] if kinds[-1] is ... or len(kinds) == 1 else kinds[int(key)]
    return _Place(name, inner, _item(place.value, key))


def _item(value: Any, key: int | str) -> object:
    if is_dataclass(value):
        return getattr(value, str(key))
    return value.get(key) if isinstance(value, Mapping) else value[key]


def _explain_unknown(place: _Place, key: str) -> str:
    known = [field.name for field in fields(_bare(_without_none(place.hint)))]
    close = get_close_matches(key[:_LONGEST], known, n=1, cutoff=0.0)
    return (
        f"`{_join(place.name, show_name(key))}` is not a setting. The closest one is `{_join(place.name, close[0])}`."
    )


def _name(place: str) -> str:
    return f"`{place}`" if place else "What is read"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def show_path(path: str | os.PathLike[str]) -> str:
    """A file's path for a message, with control characters escaped, cut where no system takes it anyway.

    Args:
        path: The file.

    Returns:
        Its name.
    """
    name = os.fspath(path)
    return name if name.isprintable() and len(name) <= _LONGEST_PATH else shorten(name)


def show_name(name: str) -> str:
    """A name from a file for a message: as it is if it can be, its representation cut to 80 characters if not.

    Args:
        name: The name.

    Returns:
        It.
    """
    return name if name.isprintable() and len(name) <= _LONGEST else shorten(name)


def show_reason(error: Exception) -> str:
    """What another library's error says, for a message: on one line, cut, with control characters escaped.

    Args:
        error: The error.

    Returns:
        Its text; its class's name if it has none.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."


def describe(hint: Any, *, python: bool = False) -> str:
    """What a value of a type must be, as it reads after "must be".

    Args:
        hint: The annotation.
        python: Whether to use Python's words ("None", "a tuple"), not a file's ("null", "a list").

    Returns:
        Such as ``"a whole number of at least 1"``.
    """
    if own := [each.words for each in get_args(hint)[1:] if hasattr(each, "words")]:
        return str(own[0])
    if get_origin(hint) is Annotated:
        plain, *rules = get_args(hint)
        return describe(plain, python=python) + _describe_rules(plain, rules)
    if _is_union(hint):
        words = [describe(each, python=python) for each in get_args(hint)]
        comma = "," if len(words) > 2 or any(" and " in each for each in words) else ""
        return f"{', '.join(words[:-1])}{comma} or {words[-1]}"
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0])
    if hint in (None, type(None)):
        return "None" if python else "null"
    return _WORDS.get(hint) or _describe_group(hint, python)


def _describe_group(hint: Any, python: bool) -> str:
    kind, kinds = get_origin(hint) or hint, get_args(hint)
    if is_dataclass(kind) and isinstance(kind, type):
        return f"of the class {kind.__name__}" if python else "a group of settings"
    if issubclass(kind, Mapping):
        return "a mapping" if python else "a group of settings"
    if issubclass(kind, Sequence):
        name = f"a {kind.__name__.lower()}" if python else "a list"
        return name if not kinds or kinds[-1] is ... or kind is not tuple else f"{name} of {len(kinds)} values"
    return "a path" if hasattr(kind, "__fspath__") else f"a {kind.__name__}"


def _describe_rules(plain: Any, rules: Sequence[object]) -> str:
    words: list[str] = []
    for rule in rules:
        match rule:
            case Ge(low):
                words.append(f"of at least {low:g}" if isinstance(low, float) else f"of at least {low:,}")
            case Gt(low):
                words.append(f"above {low:g}")
            case Le(high):
                words.append(f"at most {high:g}" if isinstance(high, float) else f"at most {high:,}")
            case Lt(high):
                words.append(f"below {high:g}")
            case MinLen(length):
                words.append("that is not empty" if length == 1 else f"with at least {length} entries")
            case MaxLen(length):
                words.append(f"with at most {length:,} {'characters' if plain is str else 'entries'}")
    return " " + " and ".join(words) if words else ""


def _bare(hint: Any) -> Any:
    return _bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _without_none(hint: Any) -> Any:
    """The type of an optional value where there is a single one: pydantic gives such a union no tag."""
    hint = _bare(hint)
    if not _is_union(hint):
        return hint
    options = tuple(each for each in get_args(hint) if each is not type(None))
    return _without_none(options[0]) if len(options) == 1 else Union[options]  # noqa: UP007 (made at run time)


def _branch(union: Any, value: object) -> Any | None:
    """The only type of a union that can hold other values, if the value does."""
    inside = [each for each in get_args(union) if _holds_values(_bare(each))]
    return inside[0] if len(inside) == 1 and isinstance(value, (Mapping, list, tuple)) else None


def _holds_values(hint: Any) -> bool:
    kind = get_origin(hint) or hint
    return is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, (Mapping, Sequence)) and kind is not str)
