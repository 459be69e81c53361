"""Borrow a model and give it back exactly as it was."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from sensitune.sites import forget_caches

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = [name for name in _OF_EVERY_MODULE if name.startswith(("_forward_hooks", "_forward_pre_hooks"))]


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Restore everything a pass over the model may touch, also when it fails half-way.

    That is: training flags of each module and whatever else it notes on itself, ``grad`` and ``requires_grad`` of each
    parameter, the buffers' values, and the random state of Python, NumPy, torch on the CPU and on the model's CUDA
    devices. Weights are never written.

    Args:
        model: The model to lend.

    Yields:
        Nothing; inside, the gradients are empty.
    """
    with (
        _random_state_kept(model),
        _buffers_kept(model),
        _parameters_kept(model),
        _training_flags_kept(model),
        _hooks_kept(model),
        _notes_kept(model),
    ):
        yield


@contextmanager
def _training_flags_kept(model: nn.Module) -> Iterator[None]:
    # Set flag by flag: `train()` may be overridden, and do more than set flags.
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def _parameters_kept(model: nn.Module) -> Iterator[None]:
    found = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    for parameter, _, _ in found:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, requires_grad, gradient in found:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


@contextmanager
def _hooks_kept(model: nn.Module) -> Iterator[None]:
    # transformers installs some in the first forward and notes it on the model: they come and go together.
    tables = [vars(module)[name] for module in model.modules() for name in _HOOKS]
    found = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, before in zip(tables, found, strict=True):
            table.clear()
            table.update(before)


@contextmanager
def _notes_kept(model: nn.Module) -> Iterator[None]:
    """Caches and other attributes. A forward starts without what the one before kept, whose graph is gone by then."""
    found = [(module, _attributes(module)) for module in model.modules()]

    def forget(*_: object) -> None:
        for module, before in found:
            noted = {name for name, value in _attributes(module).items() if isinstance(value, torch.Tensor)}
            _put_back(module, before, noted)
        forget_caches(model)

    forget()
    handle = model.register_forward_pre_hook(forget)
    try:
        yield
    finally:
        handle.remove()
        for module, before in found:
            _put_back(module, before, before.keys() | _attributes(module).keys())


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}


def _put_back(module: nn.Module, before: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if name in before:
            vars(module)[name] = before[name]
        else:
            del vars(module)[name]


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    found = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in found:
            setattr(module, name, buffer)
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


@contextmanager
def _random_state_kept(model: nn.Module) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
