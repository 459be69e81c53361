from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small_runs import changed
from torch import nn

from sensitune.allocation import Allocation, compute_lora_start
from sensitune.backbones import BackboneSpec
from sensitune.data import DataSettings
from sensitune.errors import AdapterFileError, ArgumentError, RunFolderError
from sensitune.runs import METHODS, AllocationSettings, Run, RunConfig
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.sites import outline_model
from sensitune.tuner import SptConfig

SETTINGS = AllocationSettings(rank=2)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2, embed_dim=12, num_heads=2
    ).double()


def tuned_by(method: str) -> nn.Module:
    model = make_model()
    chosen = METHODS[method]
    allocation = chosen.allocate(
        replace(SETTINGS, method=method), outline_model(model, split_fused=chosen.split_fused), None, seed=0
    )
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
    plain = make_model()
    ours = get_peft_model(make_model(), SptConfig.for_whole_model(plain))
    assert trained(ours) == trained(plain)
    torch.testing.assert_close(train_a_little(ours), train_a_little(plain), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "expected"), [("lora-qv", 2 * 2 * 2 * 24), ("lora-stored", 2 * 2 * (48 + 24 + 60 + 60))]
)
def test_loras_cost_what_their_matrices_say(method: str, expected: int) -> None:
    chosen = METHODS[method]
    allocation = chosen.allocate(
        replace(SETTINGS, method=method), outline_model(make_model(), split_fused=chosen.split_fused), None, seed=0
    )
    assert allocation.trainable_params == expected


def make_sensitivity(method: str) -> Sensitivity:
    generator = torch.Generator().manual_seed(2)
    batches = [
        (torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64), torch.arange(4) % 3) for _ in range(2)
    ]
    criterion = METHODS[method].criterion or "squared_gradient"
    return estimate_sensitivity(make_model(), batches, criterion=criterion, keep_gradients=criterion != "magnitude")


@pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.spends_budget and name != "auto"]
)
def test_every_method_with_a_budget_spends_it_exactly(method: str) -> None:
    chosen, settings = METHODS[method], replace(SETTINGS, method=method, budget=900)
    sensitivity = make_sensitivity(method) if chosen.needs_scores(settings) else None
    allocation = chosen.allocate(
        settings, outline_model(make_model(), split_fused=chosen.split_fused), sensitivity, seed=0
    )
    assert allocation.trainable_params == 900


def test_a_method_of_its_own_criterion_ranks_by_that(config: RunConfig) -> None:
    assert changed(config, allocation={"method": "layerwise"}).scoring.sensitivity.criterion == "magnitude"
    other = changed(config, sensitivity={"criterion": "absolute_gradient_sum"})
    assert other.scoring.sensitivity.criterion == "absolute_gradient_sum"
    assert changed(other, allocation={"method": "layerwise"}).scoring.sensitivity.criterion == "magnitude"


@pytest.mark.parametrize("settings", [{"drop_path": 0.1}, {"criterion": "absolute_gradient_sum"}])
def test_the_first_stage_can_be_taken_otherwise(settings: dict[str, Any], config: RunConfig, tmp_path: Path) -> None:
    plain = Run.open(tmp_path / "plain", config).sensitivity()
    other = changed(config, sensitivity=settings)
    found = Run.open(tmp_path / "other", other).sensitivity()
    assert any(not torch.equal(found.scores[name], plain.scores[name]) for name in plain.scores)
    again = Run.open(tmp_path / "again", other).sensitivity()
    assert all(torch.equal(found.scores[name], again.scores[name]) for name in found.scores)


def test_a_lora_can_start_along_the_gradient(config: RunConfig, tmp_path: Path) -> None:
    run = Run.open(tmp_path, changed(config, allocation={"lora_start": "gradient"}))
    run.train()
    folder = run.folder
    start = load_file(folder.lora_start)
    assert start.keys() == set(Allocation.load(folder.allocation).structured)
    expected = compute_lora_start(Sensitivity.load(folder.sensitivity), Allocation.load(folder.allocation))
    assert all(torch.equal(start[site], expected[site]) for site in start)


def test_a_damaged_or_missing_lora_start_is_named(config: RunConfig, tmp_path: Path) -> None:
    settings = changed(config, allocation={"lora_start": "gradient"})
    Run.open(tmp_path, settings).allocation()
    path = Run.load(tmp_path).folder.lora_start
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterFileError, match=r"lora_start\.safetensors` is damaged and cannot be read: "):
        Run.load(tmp_path).train()
    save_file({"blocks.0.attn.proj.weight": torch.zeros(8, 4)}, path)
    with pytest.raises(AdapterFileError, match=r"lora_start\.safetensors` is no Sensitune LoRA start file: "):
        Run.load(tmp_path).train()
    path.unlink()
    with pytest.raises(RunFolderError, match=r"lora_start\.safetensors is missing, .* Remove allocation\.safetensors"):
        Run.load(tmp_path).train()
    Run.load(tmp_path).folder.allocation.unlink()
    Run.load(tmp_path).allocation()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("method", "operations"),
    [("lora-qv", {"q", "v"}), ("lora-stored", {"qkv", "proj", "fc1", "fc2"})],
)
def test_uniform_lora_can_start_along_the_gradient_too(
    method: str, operations: set[str], config: RunConfig, tmp_path: Path
) -> None:
    allocation = {"method": method, "budget": None, "rank": 2, "lora_start": "gradient"}
    settings = changed(config, allocation=allocation)
    run = Run.open(tmp_path, settings)
    run.train()
    allocation = run.allocation()
    assert {allocation.site(name).operation for name in allocation.structured} == operations
    assert load_file(run.folder.lora_start).keys() == set(allocation.structured)


def test_scores_depend_on_three_groups_and_the_seed_alone(config: RunConfig) -> None:
    alike = (
        changed(config, allocation={"budget": 12_000, "rank": 2}, recipe={"learning_rate": 0.5}),
        changed(config, allocation={"method": "sparse"}),
        changed(config, compute={"device": "cuda", "num_workers": 3}),
    )
    assert {each.scoring for each in alike} == {config.scoring}
    others = (
        changed(config, seed=1),
        changed(config, sensitivity={"num_batches": 1}),
        changed(config, data={"max_train": 5}),
        changed(config, backbone={"num_blocks": 1}),
        changed(config, allocation={"method": "neuron"}),
        changed(config, allocation={"lora_start": "gradient"}),
    )
    assert len({each.scoring.file_name for each in (config, *others)}) == 1 + len(others)


def test_scores_are_shared_only_by_methods_that_see_the_model_alike(config: RunConfig) -> None:
    fused, split, qv = (
        changed(config, allocation={"method": each, "budget": None, "lora_start": "gradient"}).scoring
        for each in ("lora-stored", "lora", "lora-qv")
    )
    assert fused != split == qv


def test_scores_with_gradients_will_do_for_a_run_that_looks_at_none(config: RunConfig, tmp_path: Path) -> None:
    shared = tmp_path / "scores"
    along = Run.open(tmp_path / "along", changed(config, allocation={"lora_start": "gradient"}), scores=shared)
    expected = along.allocation()
    plain = Run.open(tmp_path / "plain", config, scores=shared)
    assert plain.known_sensitivity() is not None
    assert plain.allocation().structured == expected.structured
    alone = Run.open(tmp_path / "alone", config)
    scores, own = plain.sensitivity().scores, alone.sensitivity().scores
    assert all(torch.equal(scores[name], score) for name, score in own.items())
    assert [path.name for path in shared.iterdir()] == [along.config.scoring.file_name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "adapter", "lora_start": "gradient"},
            "`allocation.lora_start` belongs to the methods spt-lora, lora, lora-stored, lora-qv, random-lora, not to "
            "adapter. Leave it, or the preset that sets it, out",
        ),
        ({"method": "random-lora", "tau": 50}, "`allocation.tau` belongs to the methods spt-lora, .*, not to random-"),
        ({"peft": {"peft_type": "LORA"}}, "`allocation.peft` belongs to the method peft, not to spt-lora. Leave it"),
        ({"method": "peft"}, "The method peft needs `allocation.peft`, such as"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RunConfig(BackboneSpec("m"), DataSettings("d"), allocation=AllocationSettings(**settings))
