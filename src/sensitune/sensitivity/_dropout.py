"""Dropout and drop-path in a pass: which modules they are, and masks that a seed and the batch's number fix."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sensitune.errors import ModelError


def dropout_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that drop at random: torch's dropouts, and drop-path as timm, transformers and torchvision write it.

    Told by what they are: a module with a rate between 0 and 1, named ``p`` or ``drop_prob``, and nothing else, neither
    tensors nor parts.

    Args:
        model: The model.

    Returns:
        At least one module.

    Raises:
        ModelError: If there is none, so that there is nothing to switch on.
    """
    found = [module for module in model.modules() if _drops(module)]
    if not found:
        raise ModelError(
            f"`dropout=True` needs a model that drops something; {type(model).__name__} has no dropout or drop-path "
            "module with a rate above 0. Make the model with one, for example `timm.create_model(..., "
            "drop_path_rate=0.1)`, or leave `dropout` off."
        )
    return found


@contextmanager
def masks_of(seed: int, index: int, model: nn.Module) -> Iterator[None]:
    """Random numbers, on the CPU and the model's CUDA devices, that depend on the seed and the batch alone.

    Whatever else is drawn, by the data or in another process, neither changes the masks nor is changed by them.

    Args:
        seed: Of the pass.
        index: Number of the batch.
        model: The model.

    Yields:
        Nothing.
    """
    own = random.Random(f"{seed} {index}").getrandbits(63)
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.default_generator.manual_seed(own)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(own)
        yield


def _drops(module: nn.Module) -> bool:
    rate = getattr(module, "p", getattr(module, "drop_prob", None))
    bare = not [*module.children(), *module.parameters(), *module.buffers()]
    return bare and isinstance(rate, float) and 0 < rate < 1
