"""Linear layers whose weight is stored in fewer bits, as the matrix ``[out, in]`` that they compute with.

One entry of `KINDS` for each way of storing. A layer of a kind multiplies with the dequantised weight, lets gradients
through to its input, and keeps its stored bytes as they are. Its site is the dequantised matrix; names are the same as
without quantisation, so scores, allocations and adapters carry over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Buffers in which GPTQ and AWQ keep what stands for a weight.
_PACKED = frozenset({"qweight"})
# Set where a layer rearranges its stored bytes for inference in the first forward without gradients (bitsandbytes 4-bit
# on processors with AVX512-BF16): the arrangement lets no gradient through and rounds the scales.
_REPACKS = "support_avx512bf16_for_cpu"


@dataclass(frozen=True)
class QuantisedKind:
    """One way of storing a linear layer's weight.

    Attributes:
        label: What a message calls it.
        recognises: Whether a module is a layer of this kind, and holds its weight in this way now.
        read: The dequantised weight ``[out, in]`` of such a layer, a new tensor, in the type that it computes in.
    """

    label: str
    recognises: Callable[[Any], bool]
    read: Callable[[Any], torch.Tensor]


def quantised_kind(module: nn.Module) -> QuantisedKind | None:
    """How a linear layer stores its weight.

    Args:
        module: Any module.

    Returns:
        Its kind; None for every other module, also a quantised one of a kind that is not known.
    """
    return next((kind for kind in KINDS if kind.recognises(module)), None)


def dequantised_weight(module: nn.Module) -> torch.Tensor:
    """The weight ``[out, in]`` that a layer computes with.

    Args:
        module: A layer with a `quantised_kind`.

    Returns:
        A new tensor.
    """
    kind = quantised_kind(module)
    assert kind is not None, type(module).__name__
    with torch.no_grad():
        return kind.read(module).detach()


def as_computed(owner: nn.Module, name: str) -> torch.Tensor | None:
    """A parameter with the shape and the type that its module computes with.

    Args:
        owner: The module.
        name: The parameter's own name.

    Returns:
        The parameter itself; a tensor on the meta device in the place of a quantised weight; None if there is none.
    """
    parameter = owner._parameters.get(name)
    if parameter is None or name != "weight" or quantised_kind(owner) is None:
        return parameter
    layer: Any = owner
    dtype = getattr(owner, "compute_dtype", None) or torch.get_default_dtype()
    return torch.empty(layer.out_features, layer.in_features, dtype=dtype, device="meta")


def unknown_storage(owner: nn.Module, parameter: torch.Tensor) -> str | None:
    """Why a parameter is no weight that gradients or values could be told of, if it is not.

    Args:
        owner: Its module, which has no `quantised_kind`.
        parameter: The parameter.

    Returns:
        The reason, as it reads after the parameter's name.
    """
    of = f"{type(owner).__name__}, {_UNKNOWN}"
    if not parameter.is_floating_point():
        return f"stored as {parameter.dtype} by {of}"
    return f"stored as {type(parameter).__name__} by {of}" if _is_torchao(parameter) else None


def unknown_buffers(module: nn.Module) -> dict[str, str]:
    """Packed weights that a layer holds as buffers, as those of GPTQ and AWQ do, so that it has no weight at all.

    Args:
        module: Any module.

    Returns:
        The buffer's own name -> the reason why it is no site.
    """
    reason = f"stored in few bits by {type(module).__name__}, {_UNKNOWN}"
    return {name: reason for name in module._buffers if name in _PACKED}


def repacked_by(module: nn.Module) -> str | None:
    """Whether a layer's stored bytes were rearranged in a way that lets no gradient through.

    Args:
        module: Any module.

    Returns:
        What was done, as it reads after the layer's name; None if nothing was.
    """
    state = getattr(module._parameters.get("weight"), "quant_state", None)
    if not getattr(state, "packing_format_for_cpu", False):
        return None
    return (
        "was rearranged for inference by bitsandbytes, in a forward in eval mode without gradients on this processor, "
        "and lets no gradient through any more. Load the model again, and tune or score it before it is run"
    )


def stop_repacking(module: nn.Module) -> bool:
    """Have a layer keep its stored bytes as they are when it runs.

    Args:
        module: Any module.

    Returns:
        Whether it would have rearranged them; `allow_repacking` undoes it.
    """
    if not getattr(module, _REPACKS, False):
        return False
    setattr(module, _REPACKS, False)
    return True


def allow_repacking(module: nn.Module) -> None:
    """Undo `stop_repacking`.

    Args:
        module: A layer of which it returned True.
    """
    setattr(module, _REPACKS, True)


@contextmanager
def stored_bytes_kept(model: nn.Module) -> Iterator[None]:
    """No layer of a model rearranges its stored bytes meanwhile.

    Args:
        model: Any module.

    Yields:
        Nothing.
    """
    stopped = [module for module in model.modules() if stop_repacking(module)]
    try:
        yield
    finally:
        for module in stopped:
            allow_repacking(module)


def _class(file: str, name: str) -> Any:
    """A class, if its module is loaded: only then there can be an object of it."""
    return getattr(sys.modules.get(file), name, None)


def _is_four_bit(module: Any) -> bool:
    known = _class("bitsandbytes.nn", "Linear4bit")
    weight = module._parameters.get("weight")
    return known is not None and isinstance(module, known) and getattr(weight, "quant_state", None) is not None


def _four_bit(module: Any) -> torch.Tensor:
    functional: Any = sys.modules["bitsandbytes.functional"]
    weight: torch.Tensor = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    return weight.to(module.compute_dtype or weight.dtype)


def _is_eight_bit(module: Any) -> bool:
    known = _class("bitsandbytes.nn", "Linear8bitLt")
    if known is None or not isinstance(module, known):
        return False
    weight = module._parameters.get("weight")
    return weight is not None and weight.dtype == torch.int8


def _eight_bit(module: Any) -> torch.Tensor:
    # The scales move from the weight to the layer's state in its first forward.
    scales = module.weight.SCB if getattr(module.weight, "SCB", None) is not None else module.state.SCB
    weight: torch.Tensor = module.weight.data.float() * (scales.float()[:, None] / 127.0)
    return weight


def _is_torchao(tensor: Any) -> bool:
    known = _class("torchao.utils", "TorchAOBaseTensor")
    return known is not None and isinstance(tensor, known)


def _is_torchao_layer(module: Any) -> bool:
    weight = module._parameters.get("weight") if isinstance(module, nn.Linear) else None
    return weight is not None and _is_torchao(weight) and callable(getattr(weight, "dequantize", None))


def _torchao(module: Any) -> torch.Tensor:
    weight: torch.Tensor = module.weight.dequantize()
    return weight


KINDS = (
    QuantisedKind("bitsandbytes 4-bit", _is_four_bit, _four_bit),
    QuantisedKind("bitsandbytes 8-bit", _is_eight_bit, _eight_bit),
    QuantisedKind("torchao weight-only", _is_torchao_layer, _torchao),
)
_UNKNOWN = f"which is not among the quantised layers that can be read ({', '.join(kind.label for kind in KINDS)})"
