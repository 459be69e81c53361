"""Which layers are a product with their weight and nothing else, told by their class.

A LoRA adds ``up · down`` to the weight. Where the layer is such a product, adding ``up(down(x))`` to its output has the
same effect and is cheaper. Any other layer (weight standardisation, quantisation on the fly, padding or a split of its
own, a router) may do with its weight whatever it likes: there the weight itself must be changed.
"""

from __future__ import annotations

import sys

from torch import nn

# Classes with a forward of their own that is nevertheless `F.linear`.
_LINEAR = (
    ("transformers.pytorch_utils", "Conv1D"),
    ("transformers.models.falcon.modeling_falcon", "FalconLinear"),
    ("timm.layers.linear", "Linear"),
)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes ``F.linear`` with its weight, stored either way, and nothing else.

    Args:
        module: Any module.

    Returns:
        True for torch's linear layer, transformers' ``Conv1D`` and a few more, and subclasses that keep their forward.
    """
    known = (getattr(sys.modules.get(file), name, None) for file, name in _LINEAR)
    return any(_keeps(module, each, "forward") for each in (nn.Linear, *known) if each is not None)


def is_plain_convolution(module: nn.Module) -> bool:
    """Whether a module computes torch's convolution with its weight and nothing else.

    Args:
        module: Any module.

    Returns:
        True for torch's convolutions and subclasses that keep their forward.
    """
    return any(_keeps(module, each, "forward") and _keeps(module, each, "_conv_forward") for each in _CONVOLUTIONS)


def _keeps(module: nn.Module, known: type[nn.Module], method: str) -> bool:
    """Whether a module is of a class and has its method, which neither a subclass nor the instance overrides."""
    if not isinstance(module, known) or getattr(type(module), method) is not getattr(known, method):
        return False
    # accelerate puts a forward on the instance that moves weights and runs the class's own.
    return method not in vars(module) or hasattr(module, "_hf_hook")
