from __future__ import annotations

import pytest

from sensitune._markdown import code, escape, table


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("daisy", "daisy"),
        ("*very* _odd_ <b>", r"\*very\* \_odd\_ \<b\>"),
        ("[a](https://x.y)", r"\[a\](https\://x.y)"),
        ("two\nlines\x1b[31m", r"two lines \[31m"),
        ("a|b", r"a\|b"),
        ("see www.x.org", r"see www\.x.org"),
        ("![x](y) # `z` &amp; $m$ ~~s~~", r"\!\[x\](y) \# \`z\` \&amp; \$m\$ \~\~s\~\~"),
    ],
)
def test_a_name_shows_as_it_is(name: str, shown: str) -> None:
    assert escape(name) == shown


@pytest.mark.parametrize(
    ("name", "shown"), [("head", "`head`"), ("a`b", "`` a`b ``"), ("a|b", r"`a\|b`"), ("a\nb", "`a b`"), (3, "`3`")]
)
def test_a_code_span_holds_any_name(name: object, shown: str) -> None:
    assert code(name) == shown


def test_a_table_sets_numbers_to_the_right() -> None:
    assert table(["name", "count"], [["a", "1"]], numeric=["count"]) == "| name | count |\n| --- | ---: |\n| a | 1 |"
