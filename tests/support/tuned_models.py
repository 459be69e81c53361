"""Tiny models, allocations of them, and what tunes them: for every test that needs a tuned model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from peft import PeftModel, get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sensitune.allocation import Allocation
from sensitune.sites import ModelOutline, Site, outline_model
from sensitune.tuner import SptConfig

Model = TypeVar("Model", bound=nn.Module)

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3])


def seeded(
    make: Callable[[], Model], *, seed: int = 0, noise: float = 0.0, dtype: torch.dtype = torch.float32
) -> Model:
    """A model of the same values every time, in evaluation mode; `noise` lets nothing hide behind a zero or a one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        for parameter in model.parameters() if noise else ():
            parameter.data.add_(torch.randn_like(parameter) * noise)
    return model.to(dtype).eval()


def tiny_vit(width: int = 12, depth: int = 3, dtype: torch.dtype = torch.float32) -> VisionTransformer:
    """With layer scales and a class token, for `IMAGES` of 5 classes."""
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": width, "depth": depth, "num_heads": 2, "num_classes": 5}
    return seeded(lambda: VisionTransformer(**sizes, init_values=0.1), noise=0.1, dtype=dtype)


def make_allocation(
    outline: ModelOutline,
    *,
    modules: Mapping[str, int] | None = None,
    vectors: Iterable[str] = (),
    sparse: Mapping[str, torch.Tensor] | None = None,
    structured: str = "lora",
) -> Allocation:
    """Site id -> rank, whole vectors, site id -> indices; tokens are trained as ever."""
    return Allocation(
        outline=outline,
        structured=modules or {},
        vectors=tuple(vectors),
        sparse=sparse or {},
        structured_type=structured,  # type: ignore[arg-type]
        always_trained=tuple(outline.always_trained),
    )


def mixed_allocation(model: nn.Module, structured: str = "lora", turn: int = 0, rank: int = 2) -> Allocation:
    """Module or whole, sparse, untouched, by turns: in three blocks or turns every site is tuned in every way."""
    seen: Counter[str] = Counter()

    def way(site: Site) -> int:
        key = f"{site.operation} {site.kind}"
        seen[key] += 1
        return (list(seen).index(key) + seen[key] + turn) % 3

    return _allocate(model, way, torch.Generator().manual_seed(turn), structured, rank)


def random_allocation(model: nn.Module, seed: int) -> Allocation:
    """Every site tuned in a random way, or not at all."""
    generator = torch.Generator().manual_seed(seed)
    return _allocate(model, lambda _: int(torch.randint(3, (), generator=generator)), generator, "lora", 2)


def _allocate(
    model: nn.Module, way: Callable[[Site], int], generator: torch.Generator, structured: str, rank: int
) -> Allocation:
    outline = outline_model(model)
    modules, vectors, sparse = {}, [], {}
    for site in outline.sites:
        chosen = way(site)
        if chosen == 0 and site.kind == "matrix":
            modules[site.id] = rank
        elif chosen == 0 and site.kind == "vector":
            vectors.append(site.id)
        elif chosen < 2:
            count = 1 + int(torch.randint(site.numel // 2, (), generator=generator))
            sparse[site.id] = torch.randperm(site.numel, generator=generator)[:count].sort().values
    return make_allocation(outline, modules=modules, vectors=vectors, sparse=sparse, structured=structured)


def tune(base: nn.Module, allocation: Allocation, *, seed: int = 1, **options: Any) -> PeftModel:
    """`base` tuned as the allocation says, in evaluation mode; every trained value is random, so nothing is a zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = SptConfig.from_allocation(allocation, **({"init_weights": False} | options))
        return get_peft_model(base, config).eval()


def tuned_vit(structured: str = "lora", dtype: torch.dtype = torch.float32, **options: Any) -> PeftModel:
    """`tiny_vit` with every kind of tuning."""
    return tune(tiny_vit(dtype=dtype), mixed_allocation(tiny_vit(), structured), **options)


def add(tuned: PeftModel, allocation: Allocation, name: str = "other", **options: Any) -> None:
    """A second adapter, with random values of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(len(tuned.peft_config) + 1)
        tuned.add_adapter(name, SptConfig.from_allocation(allocation, **({"init_weights": False} | options)))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_trained(model: nn.Module) -> int:
    """Number of scalars that train."""
    return sum(parameter.numel() for parameter in trained(model).values())


def gradients_of(model: nn.Module, loss: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of everything that trains, by name, after one backward of `loss`."""
    model.zero_grad()
    loss().backward()
    found = {name: parameter.grad for name, parameter in trained(model).items()}
    missing = [name for name, gradient in found.items() if gradient is None]
    assert not missing, f"No gradient reached {missing}."
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}
