"""Parameters that would train and that the model's answer does not depend on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sensitune._processes import Processes
from sensitune.training._loss import logits_of
from sensitune.training._modes import evaluation_mode
from sensitune.training._sharding import is_sharded


@contextmanager
def used_parameters_alone(model: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Where several processes train together, let only those parameters train that a gradient will reach.

    They wait for one another's gradients of every parameter that trains. All of SPT's have one in every step: a module,
    a sparse value, a vector or a token that drops out or is skipped is multiplied with 0, not left out. A backbone may
    have others, such as a pooler that its classifier does not read. One process never moves these, for its optimizer
    leaves out what has no gradient; here they are found once, by one backward pass, instead of in every step.

    Args:
        model: What the steps run.
        inputs: What it reads, for one image ``[1, ...]``.

    Yields:
        Nothing; shards mind no parameter that is left out.
    """
    if Processes.found().count == 1 or is_sharded(model):
        yield
        return
    unused = _unused(model, inputs)
    for parameter in unused:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in unused:
            parameter.requires_grad_(True)


def _unused(model: nn.Module, inputs: Tensor) -> list[nn.Parameter]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad(), evaluation_mode(model):
        answer = logits_of(model, inputs.to(trained[0].device)).sum()
        gradients = torch.autograd.grad(answer, trained, allow_unused=True)
    return [each for each, gradient in zip(trained, gradients, strict=True) if gradient is None]
