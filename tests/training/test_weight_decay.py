from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from torch import nn

from sensitune.errors import ArgumentError
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


def test_what_is_tuned_in_place_can_learn_at_a_rate_of_its_own() -> None:
    model = nn.Module()
    model.delta = Delta()
    model.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
    model.head = nn.Linear(4, 3)
    decayed, kept, in_place = parameter_groups(model, weight_decay=0.1, learning_rate=0.5, in_place_rate=0.1)
    assert {id(each) for each in in_place["params"]} == {
        id(each) for each in (model.delta.spt_sparse["default"], model.delta.spt_whole["default"], model.cls_token)
    }
    assert {id(each) for each in decayed["params"]} == {id(model.delta.spt_down["default"]), id(model.head.weight)}
    assert [id(each) for each in kept["params"]] == [id(model.head.bias)]
    assert (in_place["lr"], in_place["weight_decay"]) == (0.05, 0.0)
    assert "lr" not in decayed
    assert "lr" not in kept
    with pytest.raises(ArgumentError, match=r"`in_place_rate` 0\.1 needs a `learning_rate`\. Got None"):
        parameter_groups(model, weight_decay=0.1, in_place_rate=0.1)


def test_frozen_parameters_are_in_no_group(make_model: Callable[[], PeftModel]) -> None:
    model = make_model()
    decayed, kept = parameter_groups(model, weight_decay=0.1)
    grouped = {id(parameter) for group in (decayed, kept) for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
