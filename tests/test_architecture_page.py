"""The architecture page names files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", PAGE)))


@pytest.mark.parametrize("path", NAMED)
def test_every_file_that_the_page_names_exists(path: str) -> None:
    assert (REPOSITORY / "src" / "sensitune" / path).is_file() or (REPOSITORY / path).is_file()


def test_the_page_names_files_and_every_room() -> None:
    assert len(NAMED) > 20
    packages = {path.parent.name for path in (REPOSITORY / "src" / "sensitune").rglob("__init__.py")} - {"sensitune"}
    missing = {name for name in packages if f"{name}/" not in PAGE}
    assert missing == set()
