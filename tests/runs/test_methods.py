from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from sensitune.allocation import Allocation, compute_lora_start
from sensitune.errors import ArgumentError
from sensitune.runs import METHODS, Method, Run, RunConfig
from sensitune.runs._config import BUDGETED_METHODS, Placement
from sensitune.runs._methods import criterion_of
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.sites import outline_model
from sensitune.sweeps._jobs import scores_key
from sensitune.tuner import SptConfig

CONFIG = RunConfig("vit_tiny_patch16_224", "data", rank=2)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2, embed_dim=12, num_heads=2
    ).double()


def tuned_by(method: str) -> nn.Module:
    model = make_model()
    info = METHODS[method]
    allocation = info.place(replace(CONFIG, method=method), info.outline(model), None)
    return get_peft_model(model, SptConfig.from_allocation(allocation, dropout=0.0, drop_path=0.0))


def trained(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def train_a_little(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(images).pow(2).mean().backward()
        optimizer.step()
    return model(images).detach()


def test_lora_as_peft_places_it_is_pefts_own_lora() -> None:
    ours = tuned_by("lora-stored")
    config = LoraConfig(
        r=2, lora_alpha=2, target_modules=r"blocks\..*\.(qkv|proj|fc1|fc2)", modules_to_save=["head"], bias="none"
    )
    theirs = get_peft_model(make_model(), config)
    assert trained(ours) == trained(theirs)
    with torch.no_grad():
        for name, parameters in ours.base_model.site_parameters().items():
            layer = theirs.base_model.model.get_submodule(name.removesuffix(".weight"))
            for role, part in (("down", layer.lora_A), ("up", layer.lora_B)):
                parameters[role].copy_(part["default"].weight)
    torch.testing.assert_close(train_a_little(ours), train_a_little(theirs), rtol=1e-10, atol=1e-12)


def test_full_fine_tuning_trains_like_the_plain_model() -> None:
    ours, plain = tuned_by("full"), make_model()
    assert trained(ours) == trained(plain)
    torch.testing.assert_close(train_a_little(ours), train_a_little(plain), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "expected"), [("lora-qv", 2 * 2 * 2 * 24), ("lora-stored", 2 * 2 * (48 + 24 + 60 + 60))]
)
def test_loras_cost_what_their_matrices_say(method: str, expected: int) -> None:
    info = METHODS[method]
    assert info.place(replace(CONFIG, method=method), info.outline(make_model()), None).trainable_params == expected


def make_sensitivity(method: str) -> Sensitivity:
    generator = torch.Generator().manual_seed(2)
    batches = [
        (torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64), torch.arange(4) % 3) for _ in range(2)
    ]
    criterion = METHODS[method].criterion or "squared_gradient"
    return estimate_sensitivity(make_model(), batches, criterion=criterion, keep_gradients=criterion != "magnitude")


@pytest.mark.parametrize("method", BUDGETED_METHODS)
def test_every_method_with_a_budget_spends_it_exactly(method: Method) -> None:
    info, config = METHODS[method], replace(CONFIG, method=method, budget=900)
    sensitivity = make_sensitivity(method) if info.needs_sensitivity else None
    assert info.place(config, info.outline(make_model()), sensitivity).trainable_params == 900


def test_the_knapsack_gives_each_matrix_the_rank_that_pays() -> None:
    config = replace(CONFIG, method="spt-lora", budget=900, placement="knapsack")
    allocation = METHODS["spt-lora"].place(config, outline_model(make_model()), make_sensitivity("spt-lora"))
    assert (allocation.rule, allocation.trainable_params) == ("knapsack", 900)


def test_a_method_of_its_own_criterion_ranks_by_that(config: RunConfig) -> None:
    assert criterion_of(replace(config, method="magnitude")) == "magnitude"
    chosen = replace(config, sensitivity=replace(config.sensitivity, criterion="signal_to_noise"))
    assert criterion_of(chosen) == "signal_to_noise"
    assert scores_key(replace(config, method="neurons")) != scores_key(config)


def test_a_random_placement_has_no_tau(config: RunConfig) -> None:
    with pytest.raises(ArgumentError, match=r"The method random-lora spends a `budget`; it has no `tau`. Got 50"):
        METHODS["random-lora"].place(
            replace(config, method="random-lora", budget=None, tau=50), outline_model(make_model()), None
        )


@pytest.mark.parametrize("settings", [{"head": "probe"}, {"drop_path": 0.1}, {"criterion": "signal_to_noise"}])
def test_the_first_stage_can_be_taken_otherwise(settings: dict[str, Any], config: RunConfig, tmp_path: Path) -> None:
    plain = Run.open(tmp_path / "plain", config).sensitivity()
    other = replace(config, sensitivity=replace(config.sensitivity, **settings))
    found = Run.open(tmp_path / "other", other).sensitivity()
    assert any(not torch.equal(found.scores[name], plain.scores[name]) for name in plain.scores)
    again = Run.open(tmp_path / "again", other).sensitivity()
    assert all(torch.equal(found.scores[name], again.scores[name]) for name in found.scores)


@pytest.mark.parametrize("placement", ["threshold", "knapsack"])
def test_a_lora_can_start_along_the_gradient(placement: Placement, config: RunConfig, tmp_path: Path) -> None:
    run = Run.open(tmp_path, replace(config, placement=placement, lora_start="gradient"))
    run.train()
    folder = run.folder
    start = load_file(folder.lora_start)
    assert start.keys() == set(Allocation.load(folder.allocation).structured)
    expected = compute_lora_start(Sensitivity.load(folder.sensitivity), Allocation.load(folder.allocation))
    assert all(torch.equal(start[site], expected[site]) for site in start)


@pytest.mark.parametrize(
    ("method", "operations"),
    [("lora-qv", {"q", "v"}), ("lora-stored", {"qkv", "proj", "fc1", "fc2"})],
)
def test_uniform_lora_can_start_along_the_gradient_too(
    method: Method, operations: set[str], config: RunConfig, tmp_path: Path
) -> None:
    settings = replace(config, method=method, budget=None, rank=2, lora_start="gradient")
    run = Run.open(tmp_path, settings)
    run.train()
    allocation = run.allocation()
    assert {allocation.site(name).operation for name in allocation.structured} == operations
    assert load_file(run.folder.lora_start).keys() == set(allocation.structured)


def test_scores_are_shared_only_by_methods_that_see_the_model_alike(config: RunConfig) -> None:
    methods: tuple[Method, ...] = ("lora-stored", "lora", "lora-qv")
    fused, split, qv = (replace(config, method=each, budget=None, lora_start="gradient") for each in methods)
    assert scores_key(fused) != scores_key(split) == scores_key(qv)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "sparse", "placement": "knapsack"}, "`placement` belongs to the method spt-lora, not to sparse"),
        (
            {"method": "adapter", "lora_start": "gradient"},
            "`lora_start` gradient belongs to the methods spt-lora, lora, lora-stored, lora-qv, random-lora, not to ad",
        ),
        ({"placement": "knapsack", "tau": 50}, "The placement knapsack spends a `budget`; it has no `tau`. Got 50"),
        ({"max_train": 5, "shots": 2}, "Give `max_train` or `shots`, not both. Got 5 and 2"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RunConfig("m", "d", **settings)
