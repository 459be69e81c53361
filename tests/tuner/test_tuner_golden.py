"""The tuned model computes what the published implementation computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from tuned_models import count_trained

import sensitune
from sensitune.allocation import Allocation
from sensitune.sites import find_sites, outline_model

GOLDEN = Path(__file__).parents[1] / "golden" / "reference_vit"


def golden_model() -> VisionTransformer:
    arch = json.loads((GOLDEN / "meta.json").read_text())["arch"]
    model = VisionTransformer(**arch)
    model.load_state_dict(load_file(GOLDEN / "model.safetensors"), strict=True)
    return model.eval()


def site_id(golden_name: str) -> str:
    """``blocks.0.attn.q.weight`` of the golden data is ``blocks.0.attn.qkv.weight[q]``."""
    head, _, role = golden_name.rpartition(".")
    module, _, label = head.rpartition(".")
    return f"{module}.qkv.{role}[{label}]" if label in {"q", "k", "v"} else golden_name


def golden_allocation(model: VisionTransformer, kind: str, tau: int) -> Allocation:
    description = json.loads((GOLDEN / f"allocation_{kind}_tau{tau}.json").read_text())
    indices = load_file(GOLDEN / f"allocation_{kind}_tau{tau}.safetensors")
    outline = outline_model(model)
    # The published code counts selected entries of norm vectors that are not tuned whole, but never trains them.
    sparse = {site_id(name): index for name, index in indices.items() if name != "empty" and ".norm" not in name}
    return Allocation(
        outline=outline,
        structured={site_id(name): 4 for name in description["structured_matrices"]},
        vectors=tuple(site_id(name) for name in description["tuned_vectors"]),
        sparse=sparse,
        structured_type=kind,
        tau=tau,
        budget=None,
        alpha=10.0,
        beta=5.0,
        rule="spt",
        always_trained=tuple(outline.always_trained),
        metadata={},
    )


ROLES = {
    "lora": {"0.weight": "down", "1.weight": "up"},
    "adapter": {"0.weight": "down", "0.bias": "down_bias", "2.weight": "up", "2.bias": "up_bias"},
}


def locate(name: str, kind: str) -> tuple[str, str] | None:
    """Site id and role of a golden trainable, or None for the head, whose parameters keep their own names."""
    if name.startswith("head."):
        return None
    if ".structured_" in name:
        module, _, rest = name.partition(".structured_")
        label, _, position = rest.partition(".learnable.")
        return site_id(f"{module}.{label}.weight"), ROLES[kind][position]
    for role in ("weight", "bias"):
        if name.endswith(f".sparse_{role}"):
            return site_id(name.replace(f"sparse_{role}", role)), "sparse"
    return site_id(name), "whole"


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_logits_loss_and_every_gradient_equal_the_published_implementation(kind: str) -> None:
    base = golden_model()
    golden = load_file(GOLDEN / f"forward_{kind}_tau24000.safetensors")
    config = sensitune.SptConfig.from_allocation(golden_allocation(base, kind, 24000), proj_adapter_input="input")
    originals = {site.id: site.of(base.get_parameter(site.parameter).detach().clone()) for site in find_sites(base)}
    originals["cls_token"] = base.cls_token.detach().clone()
    tuned = get_peft_model(base, config).eval()
    sites = tuned.base_model.site_parameters()
    pairs = []
    for name, value in [
        (key.removeprefix("param."), value) for key, value in golden.items() if key.startswith("param.")
    ]:
        where = locate(name, kind)
        if where is None:
            parameter = tuned.base_model.model.head.modules_to_save["default"].get_parameter(name.removeprefix("head."))
            parameter.data.copy_(value)
        else:
            parameter = sites[where[0]][where[1]]
            parameter.data.copy_(value - originals[where[0]] if where[1] == "whole" else value)
        pairs.append((parameter, golden[f"grad.{name}"]))
    batches = load_file(GOLDEN / "batches.safetensors")
    logits = tuned(batches["images"][0])
    loss = F.cross_entropy(logits, batches["labels"][0])
    loss.backward()
    torch.testing.assert_close(logits, golden["logits"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, golden["loss"].reshape(()), rtol=1e-4, atol=1e-6)
    for parameter, expected in pairs:
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()) + 1e-9)
    assert len(pairs) == sum(parameter.requires_grad for parameter in tuned.parameters())


def test_the_model_trains_exactly_what_the_allocation_says() -> None:
    base = golden_model()
    allocation = golden_allocation(base, "lora", 24000)
    tuned = get_peft_model(base, sensitune.SptConfig.from_allocation(allocation))
    assert count_trained(tuned) == allocation.trainable_params + allocation.head_params
