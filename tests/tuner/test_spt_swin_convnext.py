"""Swin and ConvNeXt whole: every kind of site of a model with stages tunes exactly, in float64, against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dense_reference import assert_gradients_follow, write_dense
from model_properties import (
    assert_merged_equals_unmerged,
    assert_reload_equals,
    assert_unloading_restores,
    assert_unmerging_restores,
    untouched,
)
from peft import PeftModel, get_peft_model
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from torch import nn
from tuned_models import count_trained, mixed_allocation, seeded, trained, tune

from sensitune.allocation import Allocation, allocate
from sensitune.errors import MergeError
from sensitune.sensitivity import estimate_sensitivity
from sensitune.sites import Site
from sensitune.tuner import SptConfig

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2])


def swin() -> nn.Module:
    """Three stages, the second with a shifted window."""
    return SwinTransformer(
        img_size=32, patch_size=4, embed_dim=8, depths=(1, 2, 1), num_heads=(1, 2, 4), window_size=2, num_classes=5
    )


def convnext() -> nn.Module:
    return ConvNeXt(depths=(1, 2, 1, 1), dims=(4, 8, 12, 16), num_classes=5, ls_init_value=0.1)


def convolutional_convnext() -> nn.Module:
    """The variant whose matrices are 1×1 convolutions."""
    return ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), num_classes=5, ls_init_value=0.1, conv_mlp=True)


FAMILIES = [swin, convnext, convolutional_convnext]
Make = Callable[[], nn.Module]


def base_of(make: Make) -> nn.Module:
    return seeded(make, noise=0.1, dtype=torch.float64)


def roles_of(tuned: PeftModel) -> dict[str, dict[str, torch.Tensor]]:
    return tuned.base_model.site_parameters()


def hook_adapters(plain: nn.Module, tuned: PeftModel, allocation: Allocation) -> dict[str, dict[str, torch.Tensor]]:
    """Adapters as forward hooks around the plain layers; returns their parameters, leaves of the reference's own."""
    own: dict[str, dict[str, torch.Tensor]] = {}
    for site_id in allocation.structured:
        site = allocation.site(site_id)
        own[site_id] = {
            role: value.detach().clone().requires_grad_() for role, value in roles_of(tuned)[site_id].items()
        }
        plain.get_submodule(site.module).register_forward_hook(adapter_hook(site, own[site_id]))
    return own


def adapter_hook(site: Site, roles: dict[str, torch.Tensor]) -> Callable[..., torch.Tensor]:
    def hook(module: nn.Module, _: object, z: torch.Tensor) -> torch.Tensor:
        channels = 1 if isinstance(module, nn.Conv2d) else -1
        start, stop = site.rows or (0, z.shape[channels])
        part = z.narrow(channels, start, stop - start).movedim(channels, -1)
        hidden = F.gelu(F.linear(part, roles["down"], roles["down_bias"]))
        change = F.linear(hidden, roles["up"], roles["up_bias"]).movedim(-1, channels)
        before, after = start, z.shape[channels] - stop
        pad = (0, 0, 0, 0, before, after) if channels == 1 else (before, after)
        return z + F.pad(change, pad)

    return hook


def gradients(model: nn.Module) -> torch.Tensor:
    logits = model(IMAGES)
    F.cross_entropy(logits, LABELS).backward()
    return logits.detach()


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("make", FAMILIES)
def test_lora_sparse_and_whole_values_equal_a_plain_model_with_their_dense_sum(make: Make, turn: int) -> None:
    allocation = mixed_allocation(base_of(make), "lora", turn)
    tuned, plain = tune(base_of(make), allocation), base_of(make)
    write_dense(plain, tuned, allocation)
    ours, expected = gradients(tuned), gradients(plain)
    torch.testing.assert_close(ours, expected)
    assert_gradients_follow(tuned, plain, allocation)
    merged = assert_merged_equals_unmerged(tuned, IMAGES)
    assert type(merged) is type(plain)
    torch.testing.assert_close(dict(merged.named_parameters()), dict(plain.named_parameters()), check_stride=False)


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("make", FAMILIES)
def test_adapters_equal_a_plain_model_with_adapters_as_hooks(make: Make, turn: int) -> None:
    allocation = mixed_allocation(base_of(make), "adapter", turn)
    tuned, plain = tune(base_of(make), allocation), base_of(make)
    write_dense(plain, tuned, allocation)
    own = hook_adapters(plain, tuned, allocation)
    torch.testing.assert_close(gradients(tuned), gradients(plain))
    assert own
    for site_id, reference in own.items():
        for role, value in reference.items():
            torch.testing.assert_close(roles_of(tuned)[site_id][role].grad, value.grad, msg=f"{site_id} {role}")
    assert_gradients_follow(tuned, plain, allocation)  # of everything but the Adapters
    with untouched(tuned), pytest.raises(MergeError, match="has an Adapter, which is not linear and cannot be merged"):
        tuned.merge_and_unload()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            swin,
            {
                "q": "structured sparse", "k": "structured sparse", "v": "structured sparse",
                "proj": "structured sparse", "fc1": "structured sparse", "fc2": "structured sparse",
                "reduction": "structured sparse", "relative_position_bias_table": "sparse",
            },
        ),
        (
            convnext,
            {
                "fc1": "structured sparse", "fc2": "structured sparse", "conv_dw": "sparse", "downsample.1": "sparse",
            },
        ),
        (convolutional_convnext, {"fc1": "structured sparse", "fc2": "structured sparse", "conv_dw": "sparse"}),
    ],
)  # fmt: skip
def test_the_turns_above_tune_every_operation_in_every_way(make: Make, expected: dict[str, str]) -> None:
    ways: dict[str, set[str]] = {}
    for turn in range(3):
        allocation = mixed_allocation(base_of(make), "lora", turn)
        for row in allocation.table():
            found = ways.setdefault(f"{row.operation} {row.kind}", set())
            found |= {row.tuning} - {"frozen"}  # the third turn
    for operation, words in expected.items():
        kind = "tensor" if words == "sparse" else "matrix"
        assert ways[f"{operation} {kind}"] == set(words.split()), operation
    vectors = {name: found for name, found in ways.items() if name.endswith(" vector")}
    assert all(found == {"vector", "sparse"} for found in vectors.values()), vectors
    assert {"gamma vector", "norm vector"} & set(vectors)


@pytest.mark.parametrize("structured", ["lora", "adapter"])
@pytest.mark.parametrize("make", FAMILIES)
def test_a_budget_is_spent_exactly_over_all_stages(make: Make, structured: str) -> None:
    model = base_of(make)
    sensitivity = estimate_sensitivity(model, [(IMAGES, LABELS)])
    allocation = allocate(sensitivity, budget=900, structured=structured, rank=2)
    tuned = get_peft_model(base_of(make), SptConfig.from_allocation(allocation))
    assert count_trained(tuned) - allocation.head_params == allocation.trainable_params == 900
    stages = {site_id.split(".")[1] for site_id in (*allocation.structured, *allocation.vectors, *allocation.sparse)}
    assert len(stages & set("0123")) >= 2


@pytest.mark.parametrize("make", FAMILIES)
def test_disabling_unmerging_and_unloading_restore_the_base_bit_for_bit(make: Make) -> None:
    tuned = tune(base_of(make), mixed_allocation(base_of(make)))
    original, changed = base_of(make)(IMAGES), tuned(IMAGES)
    assert not torch.allclose(changed, original)
    with tuned.disable_adapter():
        assert torch.equal(tuned(IMAGES), original)
    assert_unmerging_restores(tuned, IMAGES)
    assert_unloading_restores(tuned, base_of(make))


@pytest.mark.parametrize("structured", ["lora", "adapter"])
@pytest.mark.parametrize("make", FAMILIES)
def test_a_trained_model_is_the_same_after_saving_and_loading(make: Make, structured: str, tmp_path: Path) -> None:
    tuned = tune(base_of(make), mixed_allocation(base_of(make), structured, 1))
    tuned.train()
    optimiser = torch.optim.AdamW(trained(tuned).values(), lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        gradients(tuned)
        optimiser.step()
    assert_reload_equals(tuned.eval(), base_of(make), tmp_path, IMAGES)
    assert_unloading_restores(tuned, base_of(make), trained="head.fc")
