"""Pages in Debian's Chromium: opened without a network, searched for faults."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

CHROMIUM = shutil.which("chromium")
NASTY = "<script>document.title = 'owned'</script>"


class OpenPage(Protocol):
    """Opens a page in a tab; at the end of the test nothing may have been complained of, or asked of a network."""

    def __call__(self, path: Path, *, width: int, scheme: str = "light") -> Any: ...


def data_of(path: Path) -> dict[str, Any]:
    """What the script of a page reads."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found is not None
    read: dict[str, Any] = json.loads(found[1])
    return read


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("There is no Chromium. Install it: apt-get install -y chromium")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed", exc_type=ImportError)
    with driver.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    complaints: list[str] = []
    asked: list[str] = []
    opened: list[Path] = []
    tabs: list[Any] = []

    def open_one(path: Path, *, width: int, scheme: str = "light") -> Any:
        tab = browser.new_page(viewport={"width": width, "height": 1200}, color_scheme=scheme)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        tab.wait_for_selector("body[data-ready]")
        tabs.append(tab)
        opened.append(path)
        return tab

    yield open_one
    for tab in tabs:
        tab.close()
    assert not complaints, complaints  # files of support show no values of their own
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri() for path in opened], asked


def assert_fits_and_keeps_nobody_out(tab: Any, width: int) -> None:
    """Nothing is wider than the window, and axe finds no serious fault."""
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe is not installed", exc_type=ImportError)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(tab)["violations"]
    assert [(each["id"], each["impact"]) for each in found if each["impact"] in {"serious", "critical"}] == [], found
