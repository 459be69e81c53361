"""Allocations to measure on: a synthetic score with the published files' clustering, and uniformly random entries.

The published allocations crowd into few input columns: over their sparse matrices, 2 to 4 % of the columns and 0.5 to
0.9 % of the dense box of used rows × used columns hold all 20 to 30 thousand entries. A score that is the product of a
column factor, a row factor and noise, all log-normal, reproduces that with the spreads below (run this file to see the
comparison).
"""

from __future__ import annotations

import torch

from sensitune.allocation import Allocation
from sensitune.sites import ModelOutline, Site

COLUMN_SPREAD, ROW_SPREAD, NOISE_SPREAD, SITE_SPREAD = 3.0, 1.5, 1.0, 1.5
"""Standard deviations of the logarithm of the factors, fitted by hand to the published files."""


def clustered_scores(site: Site, generator: torch.Generator) -> torch.Tensor:
    """A synthetic sensitivity ``[out, in]`` of one matrix."""
    rows, columns = site.shape[0], site.shape[1]
    log = torch.randn(columns, generator=generator) * COLUMN_SPREAD
    log = log + torch.randn(rows, 1, generator=generator) * ROW_SPREAD
    log = log + torch.randn(rows, columns, generator=generator) * NOISE_SPREAD
    return log + torch.randn((), generator=generator) * SITE_SPREAD


def sparse_only(outline: ModelOutline, indices: dict[str, torch.Tensor]) -> Allocation:
    """An allocation of nothing but these entries and the class token."""
    return Allocation(
        outline=outline,
        structured={},
        vectors=(),
        sparse={name: chosen for name, chosen in indices.items() if chosen.numel()},
        rule="synthetic",
        always_trained=tuple(outline.always_trained),
    )


def clustered_allocation(outline: ModelOutline, values: int, seed: int = 0) -> Allocation:
    """The top `values` entries over all matrices of the synthetic score."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [site for site in outline.sites if site.kind == "matrix"]
    scores = torch.cat([clustered_scores(site, generator).flatten() for site in matrices])
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[scores.topk(values).indices] = True
    parts = chosen.split([site.numel for site in matrices])
    return sparse_only(outline, {site.id: part.nonzero().flatten() for site, part in zip(matrices, parts, strict=True)})


def random_pattern_allocation(outline: ModelOutline, values: int, seed: int = 0) -> Allocation:
    """`values` entries spread evenly over all matrices, at random."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [site for site in outline.sites if site.kind == "matrix"]
    total = sum(site.numel for site in matrices)
    indices = {}
    for site in matrices:
        count = round(values * site.numel / total)
        indices[site.id] = torch.randint(site.numel, (count,), generator=generator).unique()
    return sparse_only(outline, indices)


def clustering(allocation: Allocation) -> dict[str, float]:
    """How far the sparse entries spread: shares of used columns and of the box, over the touched matrices."""
    used = box = columns = numel = entries = touched = 0
    for name, chosen in allocation.sparse.items():
        site = allocation.site(name)
        if site.kind != "matrix":
            continue
        rows_used, columns_used = (torch.unique(part).numel() for part in torch.unravel_index(chosen, site.shape))
        used, columns = used + columns_used, columns + site.shape[1]
        box, numel, entries, touched = (
            box + rows_used * columns_used,
            numel + site.numel,
            entries + chosen.numel(),
            touched + 1,
        )
    return {"entries": entries, "matrices": touched, "columns": used / columns, "box": box / numel}


if __name__ == "__main__":
    import sys

    import timm

    from sensitune.allocation import load_published_allocation
    from sensitune.sites import outline_model

    vit = outline_model(timm.create_model("vit_base_patch16_224", num_classes=100))
    for path in sys.argv[1:]:
        print(path, clustering(load_published_allocation(path, vit)))
    for count in (25_000, 400_000):
        print("clustered", count, clustering(clustered_allocation(vit, count)))
        print("random", count, clustering(random_pattern_allocation(vit, count)))
