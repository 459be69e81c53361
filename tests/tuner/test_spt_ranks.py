"""Modules of different ranks side by side: in one fused projection, in several adapters, saved, merged and combined."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from model_properties import assert_merged_equals_unmerged, assert_reload_equals, assert_unmerging_restores
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D
from tuned_models import add, count_trained, make_allocation, seeded, tune

from sensitune.allocation import Allocation
from sensitune.sites import outline_model
from sensitune.tuner.kernels._low_rank import draw_kept

INPUTS = torch.randn(5, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
RANKS = {"q": 1, "k": 4, "v": 2}
SLICES = [f"qkv.weight[{operation}]" for operation in RANKS]
SIZES = {"lora": 12, "adapter": 13}  # parameters per rank; an Adapter has `out` biases besides


class Attention(nn.Module):
    """A fused projection, stored either way, and a 1×1 convolution."""

    num_heads, head_dim = 1, 6

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.qkv = Conv1D(18, 6) if transposed else nn.Linear(6, 18)
        self.mix = nn.Conv1d(6, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.mix((torch.tanh(q) * k + v).transpose(1, 2))


def attention(transposed: bool = False) -> Attention:
    return seeded(lambda: Attention(transposed), dtype=torch.float64)


def allocation(structured: str = "lora", shift: int = 0, transposed: bool = False) -> Allocation:
    """Ranks 1, 4 and 2 on q, k and v, each `shift` more; rank 3 on the convolution."""
    outline = outline_model(attention(transposed))
    ranks = {site.id: RANKS[site.operation] + shift for site in outline.sites if site.id.startswith("qkv.weight")}
    modules = {**ranks, "mix.weight": 3}
    return make_allocation(outline, modules=modules, sparse={"qkv.bias[q]": torch.tensor([2])}, structured=structured)


def tuned(one: Allocation, transposed: bool = False, **options: object) -> PeftModel:
    return tune(attention(transposed), one, **options)


def dense_change(model: PeftModel, operation: str, transposed: bool) -> torch.Tensor:
    """``up · down`` of one slice as ``[6, 6]``."""
    roles = model.base_model.site_parameters()[f"qkv.weight[{operation}]"]
    return roles["up"] @ roles["down"]


def test_the_outline_has_the_slices_that_these_tests_are_about() -> None:
    assert set(allocation().structured) == {*SLICES, "mix.weight"}


@pytest.mark.parametrize("structured", ["lora", "adapter"])
def test_every_module_gets_its_own_rank_and_the_model_trains_what_the_allocation_says(structured: str) -> None:
    one = allocation(structured)
    model = tuned(one)
    ranks = {site: len(roles["down"]) for site, roles in model.base_model.site_parameters().items() if "down" in roles}
    assert ranks == one.structured
    biases = 4 * 6 if structured == "adapter" else 0
    assert count_trained(model) == one.trainable_params == (1 + 4 + 2 + 3) * SIZES[structured] + biases + 1


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_output_and_gradients_equal_those_of_dense_changes(transposed: bool, dropout: float) -> None:
    model = tuned(allocation(transposed=transposed), transposed, dropout=dropout, drop_path=0.0)
    base = attention(transposed)
    inner = model.base_model.model
    if dropout:
        inner.qkv.train()
    x = INPUTS.clone().requires_grad_()
    expected_x = INPUTS.clone().requires_grad_()
    torch.manual_seed(3)
    output = inner.qkv(x)
    torch.manual_seed(3)
    kept, scale = draw_kept(INPUTS, dropout) if dropout else (torch.ones_like(INPUTS), 1.0)
    dropped = expected_x * kept * scale
    parts = [dropped @ dense_change(model, operation, transposed).t() for operation in RANKS]
    bias = inner.qkv.tuned("sparse", "default", "bias[q]")
    expected = base.qkv(expected_x) + torch.cat(parts, -1) + F.pad(bias, (2, 15))
    torch.testing.assert_close(output, expected)
    factors = [
        value for site, roles in model.base_model.site_parameters().items() if "qkv" in site for value in roles.values()
    ]
    weights = torch.randn_like(output)
    ours = torch.autograd.grad((output * weights).sum(), [x, *factors])
    reference = torch.autograd.grad((expected * weights).sum(), [expected_x, *factors])
    for first, second in zip(ours, reference, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("structured", ["lora", "adapter"])
def test_a_saved_adapter_keeps_each_rank(tmp_path: Path, structured: str) -> None:
    loaded = assert_reload_equals(tuned(allocation(structured)), attention(), tmp_path, INPUTS)
    assert loaded.base_model.site_parameters()["qkv.weight[k]"]["down"].shape == (4, 6)
    assert "rank 1 to 4" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("transposed", [False, True])
def test_merging_and_unmerging_are_exact(transposed: bool) -> None:
    model = tuned(allocation(transposed=transposed), transposed)
    assert_unmerging_restores(model, INPUTS)
    assert_merged_equals_unmerged(model, INPUTS)


def test_adapters_of_different_ranks_add_and_combine() -> None:
    model = tuned(allocation())
    add(model, allocation(shift=2))
    model.base_model.add_weighted_adapter(["default", "other"], [0.5, -2.0], "sum")
    sites = [model.base_model.site_parameters(name) for name in ("default", "other", "sum")]
    for site in SLICES:
        first, second, both = (found[site]["up"] @ found[site]["down"] for found in sites)
        torch.testing.assert_close(both, 0.5 * first - 2.0 * second)
    assert sites[2]["qkv.weight[k]"]["down"].shape == (4 + 6, 6)
    assert_unmerging_restores(model, INPUTS, adapters=["default", "other"])
