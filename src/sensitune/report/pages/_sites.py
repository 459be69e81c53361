"""The sites of a model as the scripts of the pages read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sensitune.allocation import SiteRow
from sensitune.report._counts import OUTSIDE, block_name


def axes_of(sites: Sequence[SiteRow]) -> tuple[list[str], list[str]]:
    """Names of the blocks and of the operations, in the order in which they are drawn: what is outside comes last."""
    blocks = sorted({row.block for row in sites if row.block is not None})
    outside = [OUTSIDE] if any(row.block is None for row in sites) else []
    operations = dict.fromkeys(row.operation for row in sorted(sites, key=lambda row: row.block is None))
    return [*map(str, blocks), *outside], list(operations)


def describe_sites(
    sites: Sequence[SiteRow], more: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """What a script needs to know of every site; `more` adds to it by the site's id."""
    return [
        {"id": row.site, "block": block_name(row), "operation": row.operation, "size": row.size}
        | dict((more or {}).get(row.site, {}))
        for row in sites
    ]
