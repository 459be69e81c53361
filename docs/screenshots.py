"""Pictures for docs/images: of the pages of `sensitune view`, made of a finished demo, or of the site.

    sensitune demo && sensitune view runs/demo && python docs/screenshots.py runs/demo
    make docs && python docs/screenshots.py build/site

It needs Debian's Chromium and playwright (`make install` brings it).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

IMAGES = Path(__file__).parent / "images"
# Name -> page, width, colours, and the elements that the picture starts and stops at.
SHOTS = {
    "page_light": ("spt-lora/report.html", 1100, "light", "h1", "h3:has-text('The most confident') + ol"),
    "page_dark": ("spt-lora/report.html", 1100, "dark", "h2:has-text('Where')", "#sites-title"),
    "page_narrow": ("spt-lora/report.html", 360, "light", "h1", "#map"),
    "page_comparison": ("comparison.html", 1100, "light", "h1", "#sites-title"),
}


def shoot(browser: Any, page: Path, width: int, scheme: str, start: str, stop: str) -> Image.Image:
    """Picture a page from the top of one element to the bottom of another, or up to the title of the table of sites."""
    tab = browser.new_page(viewport={"width": width, "height": 1200}, color_scheme=scheme)
    tab.goto(page.resolve().as_uri())
    tab.wait_for_selector("body[data-ready]")
    # A table of a few lines is enough of it.
    tab.add_style_tag(content=".scroll { max-height: 15rem !important; }")
    first, last = tab.locator(start).first.bounding_box(), tab.locator(stop).first.bounding_box()
    end = last["y"] - 10 if stop == "#sites-title" else last["y"] + last["height"] + 12
    top = max(0.0, first["y"] - 12)
    clip = {"x": 0, "y": top, "width": width, "height": end - top}
    found = Image.open(io.BytesIO(tab.screenshot(full_page=True, clip=clip)))
    tab.close()
    return found.convert("RGB")


def shoot_site(browser: Any, page: Path) -> Image.Image:
    """Picture the upper part of a page of the site: the list of pages, and what it begins with."""
    tab = browser.new_page(viewport={"width": 1100, "height": 760}, color_scheme="light")
    tab.goto(page.resolve().as_uri())
    found = Image.open(io.BytesIO(tab.screenshot()))
    tab.close()
    return found.convert("RGB")


def main(folder: Path) -> None:
    """Write all pictures of what the folder holds."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        if (folder / "cards/index.html").is_file():
            pictures = {"site": shoot_site(browser, folder / "cards/index.html")}
        else:
            pictures = {name: shoot(browser, folder / page, *how) for name, (page, *how) in SHOTS.items()}
        for name, picture in pictures.items():
            picture.save(IMAGES / f"{name}.webp", quality=65, method=6)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
