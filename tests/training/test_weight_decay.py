from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel
from torch import nn

from sensitune.training import no_weight_decay, parameter_groups


class Delta(nn.Module):
    """Names as the tuner gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.spt_sparse = nn.ParameterDict({"default": nn.Parameter(torch.zeros(2, 2))})
        self.spt_whole = nn.ParameterDict({"default": nn.Parameter(torch.zeros(1, 1, 4))})
        self.spt_down = nn.ParameterDict({"default": nn.Parameter(torch.zeros(2, 4))})


def test_vectors_tokens_and_sparse_values_are_spared() -> None:
    model = nn.Module()
    model.delta = Delta()
    model.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
    model.head = nn.Linear(4, 3)
    spared = no_weight_decay(model)
    assert spared == {"delta.spt_sparse.default", "delta.spt_whole.default", "cls_token", "head.bias"}


def test_frozen_parameters_are_in_no_group(make_model: Callable[[], PeftModel]) -> None:
    model = make_model()
    decayed, kept = parameter_groups(model, weight_decay=0.1)
    grouped = {id(parameter) for group in (decayed, kept) for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
