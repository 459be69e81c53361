"""Norms with running statistics: what an adapter does not hold does not move while it trains."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from model_properties import assert_reload_equals, state_of
from peft import PeftModel, get_peft_model
from torch import nn
from tuned_models import seeded, trained

from sensitune.tuner import SptConfig

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3, 4, 0])


class Network(nn.Module):
    """Statistics of two kinds, a norm without, and dropout inside a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.instance, self.layer = nn.InstanceNorm2d(4, track_running_stats=True), nn.GroupNorm(2, 4)
        self.norm.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.instance(self.norm(self.conv(x)))).mean((2, 3)))


def tuned(**options: object) -> PeftModel:
    config = SptConfig(target_modules=["conv", "norm"], r=0, num_sparse=3, **options)  # type: ignore[arg-type]
    return get_peft_model(seeded(Network).train(), config)


def train(model: nn.Module, parameters: PeftModel) -> None:
    optimizer = torch.optim.SGD(trained(parameters).values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state_of(model).items() if "running" in name or "batches" in name}


@pytest.mark.parametrize("mode", ["as it came", "set to training", "set to training again"])
def test_a_model_trained_in_a_loop_of_ones_own_is_the_same_once_loaded(tmp_path: Path, mode: str) -> None:
    model = tuned(modules_to_save=["head"])
    if mode != "as it came":
        model.train()
    if mode == "set to training again":
        model.eval()
        model.train()
    before = statistics(model)
    train(model, model)
    assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())
    assert_reload_equals(model.eval(), seeded(Network), tmp_path, X, exact=True)


def test_norms_that_are_held_are_named_once_and_everything_else_trains(caplog: pytest.LogCaptureFixture) -> None:
    model = tuned().train()
    assert [record.message for record in caplog.records] == [
        "`norm` and 1 more norms: running statistics stay as pretrained while the adapter trains, as an adapter does "
        "not hold them. Name a norm in `modules_to_save` to train it whole and save it."
    ]
    inner = model.base_model.model
    assert not inner.norm.training
    assert not inner.instance.training
    assert inner.layer.training
    assert inner.norm.drop.training


def test_a_norm_that_is_saved_whole_adapts_its_statistics_and_takes_them_along(tmp_path: Path) -> None:
    config = SptConfig(target_modules=["conv"], r=2, modules_to_save=["norm", "instance", "head"])
    model = get_peft_model(seeded(Network), config).train()
    before = statistics(model)
    train(model, model)
    moved = {name for name, value in statistics(model).items() if not torch.equal(value, before[name])}
    assert moved >= {name for name in before if "modules_to_save" in name and "running" in name}
    assert all("modules_to_save" in name for name in moved)
    assert_reload_equals(model.eval(), seeded(Network), tmp_path, X)


def test_a_model_that_is_set_to_training_around_peft_is_said_to_move_its_statistics(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tuned()
    caplog.clear()
    inner = model.base_model.model.train()
    inner(X)
    inner(X)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("`norm` and 1 more norms: running statistics move in training")


def test_an_adapter_that_is_loaded_to_predict_leaves_the_modes_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuned().save_pretrained(tmp_path)
    caplog.clear()
    loaded = PeftModel.from_pretrained(seeded(Network), tmp_path)
    assert not caplog.records
    assert not any(module.training for module in loaded.modules())
