from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from sensitune._schema import (
    AtLeastOne,
    NonEmptyText,
    PositiveInt,
    Rule,
    Share,
    check,
    dump_yaml,
    load,
    read,
    read_json,
    read_yaml,
    to_plain,
    write_json,
)
from sensitune.errors import ArgumentError, ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Optimiser:
    """How it steps."""

    epochs: PositiveInt = 10
    """Passes over the data."""
    rate: float = 1e-3
    """Size of a step."""
    dropout: Share | None = None
    """Share that is dropped."""

    def __post_init__(self) -> None:
        check(self)
        if self.rate == 13:
            raise ArgumentError("`rate` 13 brings bad luck. Choose another.")


@dataclass(frozen=True)
class Setup:
    """A run."""

    name: NonEmptyText
    """What it is called."""
    optimiser: Optimiser = field(default_factory=Optimiser)
    budget: PositiveInt | Annotated[str, Rule("text such as 0.4M", lambda text: text.endswith("M"))] | None = None
    alpha: AtLeastOne = 10.0
    mean: tuple[float, float] = (0.5, 0.5)
    seeds: tuple[PositiveInt, ...] = (1,)
    kind: Literal["fast", "slow"] = "fast"
    folder: Path | None = None
    again: bool = False
    tasks: Literal["all"] | Mapping[str, tuple[str, ...]] = "all"
    variants: Mapping[str, Optimiser] = field(default_factory=dict)
    best: Optimiser | None = None

    def __post_init__(self) -> None:
        check(self)


def test_a_mapping_becomes_the_dataclass_and_those_in_it() -> None:
    values = {
        "name": "a",
        "optimiser": {"epochs": 3, "rate": 1},
        "budget": "0.4M",
        "mean": [0, 1.5],
        "seeds": [1, 2],
        "folder": "x/y",
        "tasks": {"natural": ["cifar"]},
        "variants": {"slow": {"rate": 0.1}},
    }
    expected = Setup(
        "a",
        Optimiser(3, 1.0),
        budget="0.4M",
        mean=(0.0, 1.5),
        seeds=(1, 2),
        folder=Path("x/y"),
        tasks={"natural": ("cifar",)},
        variants={"slow": Optimiser(rate=0.1)},
    )
    assert read(Setup, values) == expected
    assert read(Setup, to_plain(expected)) == expected
    assert json.loads(json.dumps(to_plain(expected))) == to_plain(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": "a"}, "`nam` is not a setting. The closest one is `name`."),
        ({"optimiser": {"epoch": 3}}, "`optimiser.epoch` is not a setting. The closest one is `optimiser.epochs`."),
        (
            {"optimiser": {"epochs": 0, "rat": 1}},
            "`optimiser.rat` is not a setting. The closest one is `optimiser.rate`.",
        ),
        ({"best": {"epoch": 3}}, "`best.epoch` is not a setting. The closest one is `best.epochs`."),
        (
            {"variants": {"a": {"epoch": 3}}},
            "`variants.a.epoch` is not a setting. The closest one is `variants.a.epochs`.",
        ),
        ({"name": None}, "`name` must be text that is not empty. Got None."),
        ({"name": ""}, "`name` must be text that is not empty. Got ''."),
        ({"optimiser": {"epochs": "1"}}, "`optimiser.epochs` must be a whole number of at least 1. Got '1'."),
        ({"optimiser": {"epochs": True}}, "`optimiser.epochs` must be a whole number of at least 1. Got True."),
        ({"optimiser": {"epochs": 1.0}}, "`optimiser.epochs` must be a whole number of at least 1. Got 1.0."),
        ({"optimiser": {"epochs": 0}}, "`optimiser.epochs` must be a whole number of at least 1. Got 0."),
        ({"optimiser": {"rate": "1e-3"}}, "`optimiser.rate` must be a number. Got '1e-3'."),
        ({"optimiser": {"rate": True}}, "`optimiser.rate` must be a number. Got True."),
        ({"optimiser": {"rate": float("nan")}}, "`optimiser.rate` must be a finite number. Got nan."),
        ({"optimiser": {"rate": 13}}, "`rate` 13 brings bad luck. Choose another."),
        (
            {"optimiser": {"dropout": 1}},
            "`optimiser.dropout` must be a number of at least 0 and below 1, or null. Got 1.",
        ),
        ({"optimiser": 3}, "`optimiser` must be a group of settings. Got 3."),
        ({"budget": 0.5}, "`budget` must be a whole number of at least 1, text such as 0.4M, or null. Got 0.5."),
        ({"budget": "0.4G"}, "`budget` must be a whole number of at least 1, text such as 0.4M, or null. Got '0.4G'."),
        ({"alpha": 0.5}, "`alpha` must be a number of at least 1. Got 0.5."),
        ({"mean": [1]}, "`mean` must be a list of 2 values. Got [1]."),
        ({"mean": [1, 2, 3]}, "`mean` must be a list of 2 values. Got [1, 2, 3]."),
        ({"mean": [1, "2"]}, "`mean[1]` must be a number. Got '2'."),
        ({"seeds": [1, 0]}, "`seeds[1]` must be a whole number of at least 1. Got 0."),
        ({"seeds": 1}, "`seeds` must be a list. Got 1."),
        ({"kind": "fsat"}, "`kind` must be one of fast, slow. Got 'fsat'."),
        ({"folder": 3}, "`folder` must be a path or null. Got 3."),
        ({"again": "yes"}, "`again` must be true or false. Got 'yes'."),
        ({"again": 1}, "`again` must be true or false. Got 1."),
        ({"tasks": "some"}, "`tasks` must be all or a group of settings. Got 'some'."),
        ({"tasks": {"natural": "cifar"}}, "`tasks.natural` must be a list. Got 'cifar'."),
        ({"tasks": {"natural": ["cifar", 3]}}, "`tasks.natural[1]` must be text. Got 3."),
        ({"variants": {"a": {"epochs": 0}}}, "`variants.a.epochs` must be a whole number of at least 1. Got 0."),
        ({"best": {"epochs": 0}}, "`best.epochs` must be a whole number of at least 1. Got 0."),
        ({"best": 3}, "`best` must be a group of settings or null. Got 3."),
        ({"name": "\ud800"}, "What is read holds what no JSON file may: "),
        ({"name": object()}, "`Setup` holds what no YAML or JSON file can: a value of type object."),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_full_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(Setup, {"name": "a"} | values)
    assert str(caught.value).startswith(message)
    assert message[-1] == " " or str(caught.value) == message


def test_what_is_missing_is_named_with_where_it_belongs_and_its_file() -> None:
    with pytest.raises(ConfigError, match=r"^The setting `name` is missing\. Give it a value\.$"):
        read(Setup, {})
    with pytest.raises(DataError, match=r"^a/b\.json: The setting `runs\.name` is missing\. Give it a value\.$"):
        read(Setup, {}, where="runs", source=Path("a/b.json"), error=DataError)


def test_a_document_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^What is read must be a group of settings\. Got \[1\]\.$"):
        read(Setup, [1])


def test_a_long_or_strange_value_is_cut_and_escaped() -> None:
    for values in ({"name": 1, "x\n" * 200: 1}, {"kind": "\x1b[31m" * 100}, {"seeds": [["y" * 50] * 50] * 50}):
        with pytest.raises(ConfigError) as caught:
            read(Setup, {"name": "a"} | values)
        assert len(str(caught.value)) < 200
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Optimiser(epochs=0), "`epochs` must be a whole number of at least 1. Got 0."),
        (lambda: Optimiser(epochs=None), "`epochs` must be a whole number of at least 1. Got None."),
        (lambda: Optimiser(dropout=1), "`dropout` must be a number of at least 0 and below 1, or None. Got 1."),
        (lambda: Optimiser(rate=float("inf")), "`rate` must be a finite number. Got inf."),
        (lambda: Setup("a", {"epochs": 3}), "`optimiser` must be of the class Optimiser. Got {'epochs': 3}."),
        (lambda: Setup("a", seeds=[1]), "`seeds` must be a tuple. Got [1]."),
        (lambda: Setup("a", seeds=(1, 0)), "`seeds[1]` must be a whole number of at least 1. Got 0."),
        (lambda: Setup("a", budget=0.5), "`budget` must be a whole number of at least 1, text such as 0.4M, or None."),
    ],
)
def test_python_is_held_to_the_same_rules(build: Any, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        build()
    assert str(caught.value).startswith(message)


def test_a_whole_number_for_any_number_is_written_as_one() -> None:
    assert json.dumps(to_plain(Optimiser(rate=2))) == json.dumps(to_plain(Optimiser(rate=2.0)))
    assert json.dumps(to_plain(Setup("a", mean=(0, 1)))) == json.dumps(to_plain(Setup("a", mean=(0.0, 1.0))))


def test_the_command_line_reads_the_same_types(capsys: pytest.CaptureFixture[str]) -> None:
    assert tyro.cli(Setup, args=["--name", "a", "--optimiser.epochs", "3", "--budget", "0.4M"]) == Setup(
        "a", Optimiser(3), budget="0.4M"
    )
    with pytest.raises(SystemExit):
        tyro.cli(Setup, args=["--name", "a", "--optimiser.epochs", "0"])
    assert "`epochs` must be a whole number of at least 1" in capsys.readouterr().err


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_numbers_are_read_as_people_write_them_and_words_as_words(tmp_path: Path) -> None:
    text = "a: 1e-3\nb: 400_000\nc: yes\nd: 010\ne: 2026-01-01\nf: 1:30\ng: true\nh: ~\ni:\nj: -1.5E+2\nk: .5\nl: no"
    assert read_yaml(write(tmp_path / "a.yaml", text)) == {
        "a": 1e-3,
        "b": 400_000,
        "c": "yes",
        "d": "010",
        "e": "2026-01-01",
        "f": "1:30",
        "g": True,
        "h": None,
        "i": None,
        "j": -150.0,
        "k": 0.5,
        "l": "no",
    }


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values=st.dictionaries(st.text(), PLAIN, max_size=3))
def test_whatever_is_written_is_read_back_the_same(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("plain")
    assert read_yaml(write(folder / "a.yaml", dump_yaml(values))) == values
    write_json(folder / "a.json", values)
    assert read_json(folder / "a.json") == values


@pytest.mark.parametrize("text", ["1e3", "1e-3", "010", "yes", "null", "1_000", ".5", "2026-01-01", "=", "<<", "0x10"])
def test_text_that_looks_like_something_else_stays_text(text: str, tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path / "a.yaml", dump_yaml({"a": text, text: 1}))) == {"a": text, text: 1}


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"an alias \(\*\) is not allowed in line 2, column 10"),
        ("a: &a 1\nb: {<<: *a}", r"an alias \(\*\) is not allowed in line 2, column 9"),
        ("a: [", "expected the node content, but found '<stream end>' in line 1, column 5"),
        ("a: 1\na: 2", "a key is there twice in line 2, column 1"),
        ("1: 2", r"a key must be text \(put it in quotes\) in line 1, column 1"),
        ("[a]: 2", r"a key must be text \(put it in quotes\) in line 1, column 1"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        ("a: !!binary aGk=", "could not determine a constructor for the tag"),
        ("a: !!set {b}", "could not determine a constructor for the tag"),
        ("a: " + "[" * 5000, "it is nested too deeply"),
        ("a: " + "9" * 5000, "it holds a whole number of 5,000 digits"),
        ("a: 9223372036854775808", "it holds a whole number of 19 digits"),
        ("a: !!int x", "invalid literal for int"),
        ("a: " + "x" * 2**18, "it is larger than 256 KiB"),
        ("a: \x07", "special characters are not allowed"),
    ],
)
def test_yaml_that_is_damaged_or_a_trap_is_refused_at_once(text: str, message: str, tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/a\.yaml cannot be read: .*{message}.*\.$") as caught:
        read_yaml(write(tmp_path / "a.yaml", text))
    assert time.process_time() - started < 1
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "Expecting ',' delimiter: line 1 column 8"),
        ('{"a": 1, "a": 2}', "it has the key 'a' twice"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "it holds a whole number of 5,000 digits"),
        ("", "Expecting value"),
    ],
)
def test_json_that_is_damaged_or_a_trap_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/a\.json cannot be read: {message}"):
        read_json(write(tmp_path / "a.json", text), error=DataError)


@pytest.mark.parametrize("read_it", [read_yaml, read_json])
def test_what_is_no_readable_file_is_refused_by_name(read_it: Any, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"a: \xff")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {
        "nowhere": "No such file or directory",
        "binary": "byte 3 is not UTF-8",
        "pipe": "it is no file",
        ".": "it is no file",
    }.items():
        with pytest.raises(ConfigError, match=rf"{name} cannot be read: {reason}\.$"):
            read_it(tmp_path / name if name != "." else f"{tmp_path}/.")


def test_a_files_name_is_shown_without_its_control_characters(tmp_path: Path) -> None:
    write(tmp_path / "a\x1b[31m.json", '{"epochs": 0}')
    with pytest.raises(ConfigError, match=r"a\\x1b\[31m\.json': `epochs` must be a whole number") as caught:
        load(Optimiser, tmp_path / "a\x1b[31m.json")
    assert str(caught.value).isprintable()
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        read_yaml(tmp_path / ("x" * 300))


@pytest.mark.parametrize(("text", "found"), [("", "nothing"), ("- a", "a list"), ("a", "a text")])
def test_a_yaml_file_that_is_no_mapping_is_refused(text: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"a\.yaml must be lines of `setting: value`\. It holds {found}\.$"):
        read_yaml(write(tmp_path / "a.yaml", text))


def test_a_file_becomes_a_dataclass_or_is_named_with_its_mistake(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", to_plain(Optimiser(3)))
    write(tmp_path / "a.yaml", "epochs: 3")
    assert load(Optimiser, tmp_path / "a.json") == load(Optimiser, tmp_path / "a.yaml") == Optimiser(3)
    write(tmp_path / "b.json", '{"epochs": 0}')
    with pytest.raises(DataError, match=r"b\.json: `epochs` must be a whole number of at least 1\. Got 0\.$"):
        load(Optimiser, tmp_path / "b.json", error=DataError)
