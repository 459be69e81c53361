"""The documentation site: every page has its place, every room its page, and the whole builds without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sensitune

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md"))


def listed(page: str) -> list[str]:
    """The pages that the tables of contents of a page list."""
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    folder = Path(page).parent
    return [(folder / line).as_posix() for line in lines]


def test_every_page_is_listed_once() -> None:
    found = ["index"]
    for page in found:
        found += listed(page)
    assert sorted(found) == PAGES


def test_every_room_that_users_import_from_has_a_page() -> None:
    rooms = {path.parent.name for path in Path(sensitune.__file__).parent.glob("*/__init__.py")}
    with_pages = {Path(page).name for page in listed("api/index")}
    assert rooms - {"_schema", "cli"} | {"errors"} == with_pages
    for name in with_pages:
        assert f"automodule:: sensitune.{name}\n" in (DOCS / "api" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("api/")])
def test_every_page_opens_with_what_its_reader_will_be_able_to_do(page: str) -> None:
    text = re.sub(r"<!--.*?-->\n?", "", (DOCS / f"{page}.md").read_text(encoding="utf-8"))
    title, opening, *_ = text.split("\n\n")
    assert title.startswith("# ")
    assert re.search(r"\byou\b", opening, re.IGNORECASE), opening


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("api/")])
def test_every_link_between_pages_leads_to_a_page_and_a_heading(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        name, _, section = link.partition("#")
        if link.startswith("https://"):
            continue
        target = DOCS / page if not name else (DOCS / f"{page}.md").parent / name
        target = target.with_suffix(".md") if not name else target
        assert target.is_file(), link
        if section:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert section in slugs, link


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs Sphinx: the extra `docs`")
    pytest.importorskip("furo", reason="needs furo: the extra `docs`")
    settings = {name: value for name, value in os.environ.items() if name != "SENSITUNE_DOCS_ONLINE"}
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    assert done.returncode == 0, done.stderr
    assert "estimate_sensitivity" in (tmp_path / "api" / "sensitivity.html").read_text(encoding="utf-8")
