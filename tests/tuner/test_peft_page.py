"""docs/peft.md says what is so: every test that it names exists, and its versions are those of the project's files."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "peft.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGE))
    assert len(named) > 20
    missing = [
        f"{path}::{name}" for path, name in named if f"\ndef {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert not missing


def test_every_row_of_the_comparison_names_a_test() -> None:
    table = PAGE[PAGE.index("| feature |") : PAGE.index("\n\n¹")].splitlines()[2:]
    assert len(table) > 20
    for row in table:
        cells = row.strip("|").split("|")
        assert len(cells) == 6, row
        assert re.search(r"tests/[\w/]+\.py::\w+", cells[5]), row


def test_the_versions_are_those_of_the_project() -> None:
    oldest = re.search(r'"peft>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    newest = re.search(r"^peft==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert oldest
    assert newest
    lines = [line.split(" | ") for line in PAGE.splitlines() if re.match(r"\| (lowest|newest)-", line)]
    assert {line[5] for line in lines if line[0].startswith("| lowest")} == {oldest[1]}
    assert newest[1] in {line[5] for line in lines if line[0].startswith("| newest")}
