"""Training with the weights shared out between the processes: torch's FSDP2, frozen and trained values alike.

Each process holds its part of every tensor, and gathers those of one block while it computes that block. What is saved
is gathered, so that adapter folders and checkpoints are those of one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sensitune.errors import ArgumentError

_OTHERS = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed (ZeRO)", "ACCELERATE_USE_FSDP": "accelerate's own FSDP settings"}


def check_launcher() -> None:
    """Refuse what a launcher may ask for in the environment and that would wrap the model in its own way.

    Raises:
        ArgumentError: If it asks for DeepSpeed, or for accelerate's FSDP.
    """
    for name, what in _OTHERS.items():
        if os.environ.get(name, "").lower() in {"1", "true", "yes"}:
            raise ArgumentError(
                f"The launcher asks for {what}, which is not supported. Launch without it; to share the weights out "
                "between the processes, use `--compute.sharded` (FSDP2)."
            )


def shard(model: nn.Module, device: torch.device) -> None:
    """Share a model out between the processes, block by block and then the rest, in place.

    Args:
        model: The model, the same in every process.
        device: Where each computes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    model.to(device)
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether a model, or a part of it, is shared out."""
    return any(map(_is_shard, model.parameters()))


def _is_shard(value: Any) -> bool:
    """Whether it is a DTensor, whose module takes a moment to load."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """What repeats in a model: modules of one class that stand in one list, the inner ones first."""
    lists = [module for module in model.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    for each in reversed(lists):
        children = list(each.children())
        if len(children) > 1 and len({type(child) for child in children}) == 1:
            yield from (child for child in children if any(True for _ in child.parameters()))


def gathered(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Whole tensors in the place of shards; every process calls this.

    Args:
        tensors: Name -> tensor, or anything else.

    Returns:
        The same, shards gathered on the CPU.
    """
    return {name: value.full_tensor().cpu() if _is_shard(value) else value for name, value in tensors.items()}


def gathered_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state dict, whole; every process calls this.

    Args:
        optimizer: Of shards.

    Returns:
        What one process would save.
    """
    found = optimizer.state_dict()
    return found | {"state": {key: gathered(state) for key, state in found["state"].items()}}


def load_optimizer(optimizer: torch.optim.Optimizer, whole: Mapping[str, Any]) -> None:
    """Put a whole state dict into an optimizer of shards.

    Args:
        optimizer: Of shards.
        whole: What one process, or `gathered_optimizer`, has saved.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    order = [key for group in whole["param_groups"] for key in group["params"]]
    of_key = dict(zip(order, parameters, strict=True))
    state = {key: _alike(values, of_key[key]) for key, values in whole["state"].items()}
    optimizer.load_state_dict({**whole, "state": state})


def _alike(values: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """An optimizer's values of a parameter, those of its shape cut as it is."""
    return {name: cut(value, parameter) for name, value in values.items()}


def cut(value: Any, like: Tensor) -> Any:
    """A whole tensor as the shard of another of its shape; anything else as it is.

    Args:
        value: The tensor.
        like: What it is cut like.

    Returns:
        The shard.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


@contextmanager
def loading_whole(model: nn.Module) -> Iterator[None]:
    """Let a model's ``load_state_dict`` take whole tensors in the place of shards.

    Args:
        model: The model, shared out or not.

    Yields:
        Nothing.
    """
    own = {name: parameter for name, parameter in model.named_parameters() if _is_shard(parameter)}

    def cut_all(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in state.keys() & own.keys():
            state[name] = cut(state[name], own[name])

    handle = model.register_load_state_dict_pre_hook(cut_all)
    try:
        yield
    finally:
        handle.remove()
