"""The golden allocations of the published implementation come out of the golden scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from sensitune.allocation import Allocation, allocate
from sensitune.sensitivity import Sensitivity
from sensitune.sites import outline_model

GOLDEN = Path(__file__).parents[1] / "golden" / "reference_vit"
FILES = [f"{structured}_tau{tau}" for structured in ("lora", "adapter") for tau in (2000, 8000, 24000, 60000)]


def golden_name(site_id: str) -> str:
    """``blocks.0.attn.qkv.weight[q]`` is ``blocks.0.attn.q.weight`` in the golden files."""
    if not site_id.endswith("]"):
        return site_id
    parameter, _, label = site_id[:-1].partition("[")
    return parameter.replace(".qkv.", f".{label}.")


@pytest.fixture(scope="module")
def meta() -> dict[str, Any]:
    return dict(json.loads((GOLDEN / "meta.json").read_text()))


@pytest.fixture(scope="module")
def sensitivity(meta: dict[str, Any]) -> Sensitivity:
    outline = outline_model(VisionTransformer(**meta["arch"]))
    golden = load_file(GOLDEN / "sensitivity.safetensors")
    pieces: dict[str, list[torch.Tensor]] = {}
    for site in outline.sites:
        pieces.setdefault(site.parameter, []).append(golden[golden_name(site.id)])
    return Sensitivity({name: torch.cat(parts) for name, parts in pieces.items()}, outline, {})


def golden_allocation(sensitivity: Sensitivity, meta: dict[str, Any], name: str, **chosen: int) -> Allocation:
    structured, alpha, beta = name.split("_")[0], meta["alpha"], meta["beta"]
    return allocate(sensitivity, structured=structured, rank=meta["rank"], alpha=alpha, beta=beta, **chosen)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("name", FILES)
def test_the_published_choices_are_reproduced(sensitivity: Sensitivity, meta: dict[str, Any], name: str) -> None:
    published = json.loads((GOLDEN / f"allocation_{name}.json").read_text())
    allocation = golden_allocation(sensitivity, meta, name, tau=published["tau"])
    assert {golden_name(site) for site in allocation.structured} == set(published["structured_matrices"])
    assert {golden_name(site) for site in allocation.vectors} == set(published["tuned_vectors"])
    assert allocation.structured_params + allocation.vector_params == published["structured_params"]
    assert allocation.sparse_params == published["unstructured_params"]


@pytest.mark.parametrize("name", FILES)
def test_the_published_sparse_entries_are_reproduced_up_to_ties_at_the_cut(
    sensitivity: Sensitivity, meta: dict[str, Any], name: str
) -> None:
    allocation = golden_allocation(sensitivity, meta, name, tau=int(name.partition("tau")[2]))
    published = load_file(GOLDEN / f"allocation_{name}.safetensors")
    published.pop("empty", None)
    cut = min(
        float(sensitivity.score_of(allocation.site(site)).flatten()[indices].min())
        for site, indices in allocation.sparse.items()
    )
    ours = {golden_name(site): (site, set(indices.tolist())) for site, indices in allocation.sparse.items()}
    for golden, (site, indices) in ours.items():
        different = indices ^ set(published.pop(golden, torch.empty(0)).tolist())
        scores = sensitivity.score_of(allocation.site(site)).flatten()
        assert all(float(scores[index]) == cut for index in different)
    assert not published


@pytest.mark.parametrize("name", FILES)
def test_the_cost_of_each_published_tau_is_a_budget_that_gives_it_back(
    sensitivity: Sensitivity, meta: dict[str, Any], name: str
) -> None:
    by_tau = golden_allocation(sensitivity, meta, name, tau=int(name.partition("tau")[2]))
    by_budget = golden_allocation(sensitivity, meta, name, budget=by_tau.trainable_params)
    assert (by_budget.structured, by_budget.vectors) == (by_tau.structured, by_tau.vectors)
    assert {site: indices.tolist() for site, indices in by_budget.sparse.items()} == {
        site: indices.tolist() for site, indices in by_tau.sparse.items()
    }


def test_rank_four_can_use_the_number_that_the_design_names(sensitivity: Sensitivity, meta: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"`budget` 60,000 exceeds what rank 4 can use \(49,104\)"):
        golden_allocation(sensitivity, meta, "lora", budget=60_000)
