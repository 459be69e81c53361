"""What every page shares: one HTML file with its style, charts, script and data inside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sensitune._files import atomic_write
from sensitune._installed import need

_HERE = Path(__file__).parent


def write_html(path: str | os.PathLike[str], kind: str, data: Mapping[str, Any], **shown: object) -> Path:
    """Write a page from its template ``KIND.html`` and its script ``KIND.js``; it asks nothing of a network.

    Args:
        path: Where to; replaced if it is there.
        kind: Which page.
        data: What the script reads.
        shown: What the template shows besides.

    Returns:
        The path.

    Raises:
        MissingPackageError: If the extra ``page`` is not installed.
    """
    need_page()
    import jinja2

    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined
    ).get_template(f"{kind}.html")
    html = template.render(
        data=data,
        bundle=_charts_script(),
        script="\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("shared.js", f"{kind}.js")),
        **shown,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return Path(path)


@cache
def _charts_script() -> str:
    """Vega, Vega-Lite and vega-embed; bundling takes seconds."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def need_page() -> None:
    """Make sure that what pages are made with is installed, before anything is computed for one."""
    need("page", what="A page for the browser")
