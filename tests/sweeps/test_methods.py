from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from sensitune.sweeps import METHODS, RunConfig
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
