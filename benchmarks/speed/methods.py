"""The ways of tuning that the benchmarks compare, each on its own copy of a timm vision transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from peft import LoraConfig, ShiraConfig, SupertuningConfig, get_peft_model
from synthetic_pattern import clustered_allocation, random_pattern_allocation
from torch import nn

from sensitune.allocation import Allocation, load_published_allocation
from sensitune.sites import outline_model
from sensitune.tuner import SptConfig

FLOOR, LORA, FULL = "biases and norms", "PEFT LoRA r=8 qkv", "full fine-tuning"
PUBLISHED, CLUSTERED, RANDOM = "SPT-LoRA published", "SPT sparse clustered", "SPT sparse random"
SHIRA, SUPER_TUNING = "SHiRA", "Super-Tuning"
PEERS = (FLOOR, LORA, SHIRA, SUPER_TUNING, FULL)
DEFAULT_PUBLISHED = Path(__file__).parents[2] / "tests/golden/published/cifar_lora_0.4.pth"
CLASSES = 100


def vit(name: str = "vit_base_patch16_224", depth: int | None = None) -> nn.Module:
    """The backbone with random weights, on which the cost does not depend."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES, **({} if depth is None else {"depth": depth}))


def biases_and_norms(model: nn.Module) -> nn.Module:
    """The floor: what tuning costs when nothing but vectors is trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head.") or (parameter.dim() == 1 and "patch_embed" not in name))
    return model


def with_allocation(model: nn.Module, allocation: Allocation, dropout: float = 0.0) -> nn.Module:
    """An SPT model with this dropout and drop-path; the default settings have 0.1 for both."""
    return get_peft_model(model, SptConfig.from_allocation(allocation, dropout=dropout, drop_path=dropout))


def lora(model: nn.Module, modules: list[str], dropout: float = 0.0) -> nn.Module:
    """PEFT's LoRA of rank 8."""
    config = LoraConfig(r=8, target_modules=modules, modules_to_save=["head"], lora_dropout=dropout)
    return get_peft_model(model, config)


def touched_modules(allocation: Allocation) -> list[str]:
    """The linear layers that hold sparse entries."""
    sites = map(allocation.site, allocation.sparse)
    return sorted({site.module for site in sites if site.kind == "matrix"})


def shira(model: nn.Module, allocation: Allocation) -> nn.Module:
    """SHiRA on the modules that a sparse allocation touches, with as many values in total."""
    modules = touched_modules(allocation)
    sizes = sum(sum(model.get_submodule(name).weight.shape) for name in modules)
    rank = max(1, round(allocation.sparse_params / sizes))
    return get_peft_model(model, ShiraConfig(r=rank, target_modules=modules, modules_to_save=["head"]))


def supertuning(model: nn.Module, allocation: Allocation) -> nn.Module:
    """Super-Tuning on the same modules with the same number of values."""
    modules = touched_modules(allocation)
    weights = sum(model.get_submodule(name).weight.numel() for name in modules)
    sparsity = 1.0 - allocation.sparse_params / weights
    config = SupertuningConfig(target_modules=modules, modules_to_save=["head"], sparsity=sparsity)
    return get_peft_model(model, config)


def methods(
    make: Callable[[], nn.Module], values: int, published: Path | None, dropout: float = 0.0
) -> dict[str, Callable[[], nn.Module]]:
    """Every method by name, to be made when it is needed.

    Args:
        make: Makes a copy of the backbone.
        values: Trained values of the sparse methods.
        published: A published allocation for ViT-B/16; None = leave it out.
        dropout: Dropout of the methods with LoRAs, drop-path of SPT's.

    Returns:
        Name -> a function that makes the tuned model.
    """
    outline = outline_model(make())
    clustered = replace(clustered_allocation(outline, values), always_trained=())
    scattered = replace(random_pattern_allocation(outline, values), always_trained=())
    made: dict[str, Callable[[nn.Module], nn.Module]] = {
        FLOOR: biases_and_norms,
        LORA: partial(lora, modules=["qkv"], dropout=dropout),
        CLUSTERED: partial(with_allocation, allocation=clustered),
        RANDOM: partial(with_allocation, allocation=scattered),
        SHIRA: partial(shira, allocation=clustered),
        SUPER_TUNING: partial(supertuning, allocation=clustered),
        FULL: lambda model: model,
    }
    if published is not None:
        allocation = load_published_allocation(published, outline)
        made[PUBLISHED] = partial(with_allocation, allocation=allocation, dropout=dropout)
    return {name: lambda tune=tune: tune(make()) for name, tune in made.items()}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """An optimiser over what is trained."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def trainable_without_head(model: nn.Module) -> int:
    """Number of trained scalars, the head not counted."""
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "head" not in name)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One training step."""
    model.train()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def predict(model: nn.Module, images: torch.Tensor) -> None:
    """One forward pass for prediction."""
    model.eval()
    with torch.no_grad():
        model(images)
