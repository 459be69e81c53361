from __future__ import annotations

from pathlib import Path

import pytest

from sensitune._text import csv_cell, is_text, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("daisy é 雛菊 👩\u200d🌾 a\u00a0b", "daisy é 雛菊 👩\u200d🌾 a\u00a0b"),
        ("[/] [bold]x[/bold] :smile:", "[/] [bold]x[/bold] :smile:"),
        ("\x1b[31mred\x1b[0m \x07\x9b", r"\x1b[31mred\x1b[0m \x07\x9b"),
        ("two\nlines\tand\u2028more", r"two\nlines\tand\u2028more"),
        ("gnp.exe\u202egnp", r"gnp.exe\u202egnp"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
        (Path("a\x1bb"), r"a\x1bb"),
    ],
)
def test_a_terminal_shows_a_name_and_obeys_nothing_in_it(text: object, shown: str) -> None:
    assert visible(text) == shown
    assert visible(text).encode()


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("daisy", "daisy"),
        ("=1+1", "'=1+1"),
        ("+x", "'+x"),
        ("-cat.png", "'-cat.png"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =x", "' =x"),
        ("\uff1dx", "'\uff1dx"),
        ("-1.5", "-1.5"),
        ("\t=x", r"\t=x"),
        ("a\udce9", r"a\xe9"),
        ("", ""),
        (-0.5, -0.5),
        (None, None),
        (True, True),
        ((0, 1), "0 1"),
        (Path("=x"), "'=x"),
    ],
)
def test_a_spreadsheet_computes_nothing(value: object, cell: object) -> None:
    assert csv_cell(value) == cell


def test_bytes_that_are_not_utf8_are_no_text() -> None:
    assert is_text("é 👩")
    assert not is_text(b"caf\xe9".decode("utf-8", "surrogateescape"))
