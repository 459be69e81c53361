"""Small models whose linear layers are stored in few bits, by every library that is installed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

WIDTH = 64  # of whole blocks in every library


def _bitsandbytes(model: nn.Module, make: Callable[[nn.Linear, bool], nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name not in {"head", "lm_head", "score"}:
                layer = make(child, child.bias is not None)
                layer.load_state_dict(child.state_dict())
                if layer.bias is not None:
                    layer.bias.data = child.bias.data.clone()  # in its own type
                setattr(parent, name, layer.to(child.weight.device))
    return model


def nf4(model: nn.Module, dtype: torch.dtype = torch.float32, *, double: bool = True) -> nn.Module:
    """Every linear layer but the head in bitsandbytes' 4 bits."""
    import bitsandbytes as bnb

    def make(child: nn.Linear, bias: bool) -> nn.Module:
        options: dict[str, Any] = {"compute_dtype": dtype, "quant_type": "nf4", "compress_statistics": double}
        return bnb.nn.Linear4bit(child.in_features, child.out_features, bias=bias, **options)

    return _bitsandbytes(model, make)


def int8(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Every linear layer but the head in bitsandbytes' 8 bits."""
    import bitsandbytes as bnb

    def make(child: nn.Linear, bias: bool) -> nn.Module:
        return bnb.nn.Linear8bitLt(child.in_features, child.out_features, bias=bias, has_fp16_weights=False)

    return _bitsandbytes(model, make)


def _torchao(model: nn.Module, config: Any) -> nn.Module:
    from torchao.quantization import quantize_

    def chosen(module: nn.Module, name: str) -> bool:
        return type(module) is nn.Linear and name.rpartition(".")[2] not in {"head", "lm_head", "score"}

    quantize_(model, config, filter_fn=chosen)
    return model


def torchao_int8(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Every linear layer but the head in torchao's 8 bits, weight only."""
    from torchao.quantization import Int8WeightOnlyConfig

    return _torchao(model, Int8WeightOnlyConfig())


def torchao_int4(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Every linear layer but the head in integers of 4 bits, in torchao's layout that a CPU can compute with."""
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    return _torchao(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "nf4": nf4,
    "int8": int8,
    "torchao_int8": torchao_int8,
    "torchao_int4": torchao_int4,
}


def _cases() -> list[Any]:
    found = []
    for name, make in MAKERS.items():
        package = "torchao" if name.startswith("torchao") else "bitsandbytes"
        missing = pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}: the extra `quantised`")
        found.append(pytest.param(make, id=name, marks=missing))
    return found


EVERY_KIND = pytest.mark.parametrize("quantise", _cases())


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        y: torch.Tensor = self.proj(torch.tanh(q) * k + v)
        return x + y


class Small(nn.Module):
    """A classifier of tokens with a fused projection; the first layer's input needs no gradient."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks(self.fc(x)).mean(1))
        return logits


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


def batches(number: int = 2, size: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = torch.Generator().manual_seed(7)
    return [
        (torch.randn(size, 5, WIDTH, generator=made), torch.randint(3, (size,), generator=made)) for _ in range(number)
    ]


def stored_bytes(model: nn.Module) -> dict[str, Any]:
    """A copy of all that a model holds, in the way that it holds it."""
    return {name: copy.deepcopy(value) for name, value in model.state_dict().items()}


def same_bytes(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether nothing that is stored has changed."""

    def plain(value: Any) -> list[torch.Tensor]:
        names = getattr(value, "tensor_data_names", None)
        return [value] if names is None else [getattr(value, name) for name in names]

    return before.keys() == after.keys() and all(
        torch.equal(one, other)
        for name in before
        for one, other in zip(plain(before[name]), plain(after[name]), strict=True)
    )
