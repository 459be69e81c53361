"""A configuration of PEFT's own LoRA: what it trains is what the plan says, whatever the modules are called."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from scored_models import random_sensitivity
from small_language_models import tiny_gpt2, tiny_llama
from torch import nn
from tuned_models import IMAGES, count_trained, tiny_vit

from sensitune import LoraPlan, lora_config, plan_lora
from sensitune.allocation import compute_lora_start
from sensitune.errors import ArgumentError, ModelError

# PEFT 0.21.2 asks transformers 5 for a property that it renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def nested(names: Mapping[str, tuple[int, int]]) -> nn.Module:
    """Linear layers at these places, and one behind them that nobody takes for a head; never called."""
    root = nn.Module()
    for name, (inputs, outputs) in {**names, "behind": (3, 3)}.items():
        *parents, own = name.split(".")
        owner = root
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            owner = owner._modules[parent]
        owner.add_module(own, nn.Linear(inputs, outputs))
    return root


# Every name is another one's end, or another one's pattern.
CONFUSING = {
    "fc": (5, 4),
    "a.fc": (6, 4),
    "b.a.fc": (7, 4),
    "b.axfc": (8, 4),
    "c.b.a.fc": (9, 4),
    "xa.fc": (10, 4),
    "layers.1.up": (11, 4),
    "layers.11.up": (12, 4),
    "layers.1x1.up": (13, 4),
    "more.layers.1.up": (14, 4),
}


def ranks_in(model: nn.Module) -> dict[str, int]:
    """Name of each module that has one of PEFT's LoRAs -> its rank."""
    return {
        name: module.r["default"]
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and module.r
    }


def tuned_by(plan: LoraPlan, model: nn.Module) -> PeftModel:
    with torch.random.fork_rng():
        return get_peft_model(model, plan.config)


@pytest.mark.parametrize("make", [tiny_vit, tiny_llama, tiny_gpt2], ids=["vit", "llama", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"max_rank": 2}, {"use_rslora": True, "lora_alpha": 4}])
def test_peft_trains_what_the_plan_says(make: object, options: dict[str, object]) -> None:
    plan = plan_lora(random_sensitivity(make()), budget=500, **options)
    tuned = tuned_by(plan, make())
    assert ranks_in(tuned.base_model.model) == plan.ranks
    assert count_trained(tuned) == plan.trainable_params + plan.head_params
    assert plan.trainable_params <= 500


@settings(max_examples=40, deadline=None)
@given(
    budget=st.integers(20, 600),
    names=st.lists(st.sampled_from(sorted(CONFUSING)), min_size=2, unique=True),
    allowed=st.data(),
    seed=st.integers(0, 5),
)
def test_names_that_are_the_ends_or_patterns_of_others_get_their_own_ranks(
    budget: int, names: list[str], allowed: st.DataObject, seed: int
) -> None:
    model = nested({name: CONFUSING[name] for name in names})
    chosen = allowed.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    # By module name, as `fc` is the own name of several.
    sites = [name for name in chosen if name == "fc" or "." in name]
    plan = plan_lora(random_sensitivity(model, seed=seed), budget=min(budget, 3 * 9), max_rank=3, allowed=sites)
    tuned = tuned_by(plan, model)
    assert ranks_in(tuned.base_model.model) == plan.ranks
    assert count_trained(tuned) == plan.trainable_params


def test_a_name_that_ends_another_modules_name_is_matched_alone() -> None:
    model = nested({"fc": (4, 4), "blocks.fc": (4, 4), "a.up": (4, 4), "z.a.up": (4, 4)})
    plan = plan_lora(random_sensitivity(model), budget=8, max_rank=1, allowed=["a.up"])
    assert plan.config.target_modules == r"a\.up"
    plan = plan_lora(random_sensitivity(model), budget=16, max_rank=1, allowed=["z.a.up", "blocks.fc"])
    assert plan.config.target_modules == {"z.a.up", "blocks.fc"}


def test_a_module_without_parameters_may_have_the_name_of_a_root_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    plan = plan_lora(random_sensitivity(model), budget=8, max_rank=1, allowed=["0"])
    assert ranks_in(tuned_by(plan, model).base_model.model) == {"0": 1}


def test_the_configuration_is_pefts_own_and_the_same_from_its_file(tmp_path: Path) -> None:
    model = nested(CONFUSING)
    plan = plan_lora(
        random_sensitivity(model), budget=300, max_rank=3, task_type="FEATURE_EXTRACTION", lora_dropout=0.1
    )
    assert type(plan.config) is LoraConfig
    assert plan.config.lora_dropout == 0.1
    plan.config.save_pretrained(tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    assert "sensitune" not in text.lower()
    assert json.loads(text).keys() == LoraConfig().to_dict().keys()
    loaded = PeftConfig.from_pretrained(tmp_path)  # the file sorts the keys of patterns
    assert ranks_in(get_peft_model(model, loaded).base_model.model) == plan.ranks


def test_patterns_hold_full_names_and_only_what_differs_from_the_highest_rank() -> None:
    plan = plan_lora(random_sensitivity(tiny_vit()), budget=700)
    highest = max(plan.ranks.values())
    assert plan.config.r == plan.config.lora_alpha == highest
    assert plan.config.rank_pattern == {name: rank for name, rank in plan.ranks.items() if rank != highest}
    assert plan.config.alpha_pattern == plan.config.rank_pattern
    assert plan.config.target_modules == set(plan.ranks)
    assert plan.config.modules_to_save == ["head"]


def test_every_output_is_scaled_alike() -> None:
    for lora_alpha, scale in [(None, 1.0), (32, None), (7, None)]:
        plan = plan_lora(random_sensitivity(tiny_vit()), budget=700, lora_alpha=lora_alpha)
        layers = [each for each in tuned_by(plan, tiny_vit()).modules() if isinstance(each, LoraLayer)]
        expected = scale or lora_alpha / max(plan.ranks.values())
        assert [layer.scaling["default"] for layer in layers] == pytest.approx([expected] * len(layers))
        assert len({layer.r["default"] for layer in layers}) > 1


def test_rank_stabilised_lora_has_one_alpha() -> None:
    for lora_alpha, alpha in [(None, 8), (16, 16)]:
        plan = plan_lora(random_sensitivity(tiny_vit()), budget=700, use_rslora=True, lora_alpha=lora_alpha)
        assert plan.config.alpha_pattern == {}
        for layer in tuned_by(plan, tiny_vit()).modules():
            if isinstance(layer, LoraLayer):
                assert layer.scaling["default"] == pytest.approx(alpha / math.sqrt(layer.r["default"]))


def test_the_configuration_alone_is_the_plans_and_says_what_it_comes_to(caplog: pytest.LogCaptureFixture) -> None:
    sensitivity = random_sensitivity(tiny_vit())
    plan = plan_lora(sensitivity, budget=700, rank=4)
    with caplog.at_level(logging.INFO, "sensitune"):
        assert lora_config(sensitivity, budget=700, rank=4) == plan.config
    assert f"train {plan.trainable_params} of the 700 parameters asked for, and a head of 65." in caplog.text
    assert f"{plan.trainable_params:,} without the head" in plan.summary()


@pytest.mark.parametrize("make", [tiny_vit, tiny_gpt2, tiny_llama], ids=["vit", "gpt2", "llama"])
def test_a_gradient_start_is_an_adapter_that_peft_goes_on_with(make: object, tmp_path: Path) -> None:
    base = make()
    plan = plan_lora(random_sensitivity(base), budget=600, max_rank=4)
    plan.save_start(tmp_path / "start", base)
    tuned = PeftModel.from_pretrained(make(), tmp_path / "start", is_trainable=True)
    assert count_trained(tuned) == plan.trainable_params + plan.head_params
    start = compute_lora_start(plan.sensitivity, plan.allocation)
    for name, layer in tuned.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            torch.testing.assert_close(layer.lora_A["default"].weight, start[f"{name}.weight"].float())
            assert not layer.lora_B["default"].weight.any()
    inputs = IMAGES if make is tiny_vit else torch.tensor([[3, 4, 5], [6, 7, 8]])
    with torch.no_grad():
        outputs, expected = (getattr(found, "logits", found) for found in (tuned(inputs), base(inputs)))
    torch.testing.assert_close(outputs, expected)
    assert (tmp_path / "start" / "adapter_model.safetensors").stat().st_mode & 0o444 == 0o444


def test_the_first_step_from_a_gradient_start_follows_the_gradient(tmp_path: Path) -> None:
    """With A the leading right singular vectors, one step on B changes W by the gradient's best approximation."""
    base = nn.Sequential(nn.Linear(6, 5, bias=False))
    plan = plan_lora(random_sensitivity(base), budget=22, max_rank=2)
    plan.save_start(tmp_path / "start", base)
    tuned = PeftModel.from_pretrained(base, tmp_path / "start", is_trainable=True).double()
    gradient = plan.sensitivity.gradients["0.weight"]
    layer = tuned.base_model.model[0]
    (layer.get_delta_weight("default") * gradient).sum().backward()  # dL/dW is the gradient
    step = 3 * layer.lora_B["default"].weight.grad @ layer.lora_A["default"].weight
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    torch.testing.assert_close(step, left[:, :2] @ values[:2].diag() @ right[:2], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_is_refused_in_one_sentence(tmp_path: Path) -> None:
    sensitivity = random_sensitivity(tiny_vit())
    for options, message in [
        ({"r": 4}, "`r` follows from the plan. Leave it out"),
        ({"target_modules": ["qkv"]}, "`target_modules` follows from the plan"),
        ({"use_dora": True}, "`use_dora` changes what PEFT trains, which the budget counts. Set it on the"),
        ({"bias": "all"}, "`bias` changes what PEFT trains"),
        ({"lora_dropuot": 0.1}, "`lora_dropuot` is not a field of PEFT's LoraConfig. Leave it out."),
    ]:
        with pytest.raises(ArgumentError, match=re.escape(message)):
            plan_lora(sensitivity, budget=100, **options)
    with pytest.raises(ArgumentError, match=re.escape("a model with a head (head) holds the head's values too. Give")):
        plan_lora(sensitivity, budget=100).save_start(tmp_path / "start")
    without = random_sensitivity(tiny_vit())
    object.__setattr__(without, "gradients", None)
    with pytest.raises(ArgumentError, match="holds no gradients"):
        plan_lora(without, budget=100).save_start(tmp_path / "start", tiny_vit())
    assert not (tmp_path / "start").exists()


def test_a_head_whose_name_ends_another_modules_is_refused_and_the_way_out_works() -> None:
    model = tiny_vit()
    model.blocks[0].overhead = nn.Linear(12, 12)
    sensitivity = random_sensitivity(model)
    with pytest.raises(ModelError, match=re.escape("PEFT cannot be told to train `head` alone: it takes `modules_to")):
        plan_lora(sensitivity, budget=100)
    plan = plan_lora(sensitivity, budget=100, modules_to_save=None)
    assert plan.head_params == 0
    assert count_trained(tuned_by(plan, model)) == plan.trainable_params
