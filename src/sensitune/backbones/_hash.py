"""A fingerprint of a backbone's weights, so that an adapter can refuse another base."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from sensitune.sites import find_head


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a model's tensors, the head excluded.

    Persistent buffers count as well as parameters. Order, device and memory layout do not.

    Args:
        model: A plain model, before or after it was wrapped for tuning and unwrapped again.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone_tensors(model).items()):
        plain = tensor.detach().to("cpu").contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def backbone_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's state without its head."""
    head = find_head(model)
    return {name: tensor for name, tensor in model.state_dict().items() if not is_within(name, head)}


def is_within(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a tensor belongs to one of the modules."""
    return any(name.startswith(f"{module}.") for module in modules)
