"""A LoRA that starts along the gradient takes its first step as far along it as its rank allows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_properties import untouched
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D
from tuned_models import seeded

from sensitune.allocation import Allocation, compute_lora_start, uniform_allocation
from sensitune.errors import AllocationMismatchError, ArgumentError, ModelError
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.tuner import SptConfig, apply_lora_start

INPUTS = torch.randn(7, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 1])


class Mixed(nn.Module):
    """A fused projection, a transposed one, a plain one, a 1×1 convolution and a head."""

    num_heads, head_dim = 1, 6

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.wide = Conv1D(8, 6)
        self.narrow = nn.Linear(8, 6)
        self.mix = nn.Conv1d(6, 6, 1)
        self.head = nn.Linear(6, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.narrow(torch.tanh(self.wide(torch.tanh(q) * k + v)))
        return self.head(torch.tanh(self.mix(x.transpose(1, 2))).mean(-1))


def mixed() -> Mixed:
    def make() -> Mixed:
        model = Mixed()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
        return model

    return seeded(make, dtype=torch.float64)


def sensitivity() -> Sensitivity:
    return estimate_sensitivity(mixed(), [(INPUTS, LABELS)], keep_gradients=True)


def allocation(rank: int = 2) -> Allocation:
    one = uniform_allocation(sensitivity().outline, rank=rank)
    return replace(one, structured={**one.structured, "qkv.weight[k]": 4, "wide.weight": 3})


def tuned(**options: Any) -> PeftModel:
    options = {"dropout": 0.0, "drop_path": 0.0} | options
    return get_peft_model(mixed(), SptConfig.from_allocation(allocation(), **options)).double()


def test_the_tuned_model_is_still_the_base_and_holds_the_start() -> None:
    model, start = tuned(), compute_lora_start(sensitivity(), allocation())
    apply_lora_start(model, start)
    torch.testing.assert_close(model(INPUTS), mixed()(INPUTS))
    for site, roles in model.base_model.site_parameters().items():
        torch.testing.assert_close(roles["down"].flatten(1), start[site].double())
        assert not roles["up"].any()
    assert {site: tuple(one.shape) for site, one in start.items()} == {
        "qkv.weight[q]": (2, 6),
        "qkv.weight[k]": (4, 6),
        "qkv.weight[v]": (2, 6),
        "wide.weight": (3, 6),
        "narrow.weight": (2, 8),
        "mix.weight": (2, 6),
    }


def test_one_step_changes_the_weight_by_the_gradients_projection_on_the_start() -> None:
    model, start, rate = tuned(), compute_lora_start(sensitivity(), allocation()), 0.1
    apply_lora_start(model, start)
    base = mixed()
    F.cross_entropy(base(INPUTS), LABELS).backward()
    ups = [roles["up"] for roles in model.base_model.site_parameters().values()]
    F.cross_entropy(model(INPUTS), LABELS).backward()
    torch.optim.SGD(ups, lr=rate).step()
    merged = dict(model.merge_and_unload().named_parameters())
    for site in allocation().outline.sites:
        if site.kind != "matrix":
            continue
        gradient = site.of(base.get_parameter(site.parameter).grad)
        change = site.of(merged[site.parameter] - base.get_parameter(site.parameter)).detach()
        if site.transposed:
            gradient, change = gradient.t(), change.t()
        down = start[site.id].double()
        torch.testing.assert_close(change.flatten(1), -rate * gradient.flatten(1) @ down.t() @ down)
        # The start is of this very gradient, so the first step keeps its leading singular values.
        kept = torch.linalg.svdvals(gradient.flatten(1))[: len(down)]
        torch.testing.assert_close(
            torch.linalg.svdvals(change.flatten(1))[: len(down)], rate / 3 * kept, rtol=1e-5, atol=1e-9
        )


def test_a_saved_and_loaded_adapter_has_the_same_start(tmp_path: Path) -> None:
    model = tuned()
    apply_lora_start(model, compute_lora_start(sensitivity(), allocation()))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(mixed(), tmp_path)
    ours, theirs = (one.base_model.site_parameters() for one in (model, loaded))
    assert all(torch.equal(ours[site]["down"], theirs[site]["down"]) for site in ours)


def test_each_of_several_adapters_has_its_own_start() -> None:
    model = tuned()
    before = {site: roles["down"].clone() for site, roles in model.base_model.site_parameters().items()}
    model.add_adapter("other", SptConfig.from_allocation(allocation()))
    apply_lora_start(model, compute_lora_start(sensitivity(), allocation()), adapter="other")
    after = {site: roles["down"] for site, roles in model.base_model.site_parameters().items()}
    assert all(torch.equal(after[site], before[site]) for site in before)


def test_the_tuner_without_pefts_outer_model_will_do() -> None:
    model, start = tuned(), compute_lora_start(sensitivity(), allocation())
    apply_lora_start(model.base_model, start)
    torch.testing.assert_close(
        model.base_model.site_parameters()["narrow.weight"]["down"], start["narrow.weight"].double()
    )


def changed(name: str, value: torch.Tensor | None) -> dict[str, torch.Tensor]:
    start = compute_lora_start(sensitivity(), allocation()) | ({} if value is None else {name: value})
    return {site: one for site, one in start.items() if value is not None or site != name}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("mix.weight", None, r"`start` lacks `mix.weight`, where the adapter has a LoRA"),
        ("mix.bias", torch.zeros(2, 6), r"`start` names `mix.bias`, where the adapter has no LoRA"),
        ("mix.weight", torch.zeros(3, 6), r"`mix.weight` needs a start of shape \[2, 6\]. Got \[3, 6\]"),
        ("mix.weight", torch.zeros(12), r"`mix.weight` needs a start of shape \[2, 6\]. Got \[12\]"),
    ],
)
def test_a_start_of_another_allocation_is_refused_and_changes_nothing(
    name: str, value: torch.Tensor | None, sentence: str
) -> None:
    model = tuned()
    start = changed(name, value)
    with untouched(model), pytest.raises(AllocationMismatchError, match=sentence):
        apply_lora_start(model, start)


def test_an_adapter_that_was_trained_keeps_its_start() -> None:
    with pytest.raises(ArgumentError, match=r"The LoRA on `qkv.weight\[q\]` does not start from zero"):
        apply_lora_start(tuned(init_weights=False), compute_lora_start(sensitivity(), allocation()))


def test_an_adapter_module_has_no_such_start() -> None:
    adapters = uniform_allocation(sensitivity().outline, structured="adapter", rank=2)
    model = get_peft_model(mixed(), SptConfig.from_allocation(adapters))
    with pytest.raises(AllocationMismatchError, match=r"`start` names `narrow.weight`, where the adapter has no"):
        apply_lora_start(model, {"narrow.weight": torch.zeros(2, 6)})


@pytest.mark.parametrize("wrap", [False, True])
def test_another_methods_model_is_refused(wrap: bool) -> None:
    model = get_peft_model(mixed(), LoraConfig(target_modules=["narrow"], r=2)) if wrap else mixed()
    with pytest.raises(ModelError, match=r"has no SPT adapter. Call `get_peft_model` with an `SptConfig` first"):
        apply_lora_start(model, {})


def test_an_unknown_adapter_is_refused() -> None:
    with pytest.raises(ModelError, match="There is no adapter 'other'"):
        apply_lora_start(tuned(), {}, adapter="other")
