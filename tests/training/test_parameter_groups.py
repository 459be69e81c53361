from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from sensitune.allocation import random_allocation
from sensitune.errors import ArgumentError
from sensitune.sites import outline_model
from sensitune.training import parameter_groups
from sensitune.tuner import SptConfig


def ids(parameters: object) -> set[int]:
    return {id(each) for each in parameters}  # type: ignore[attr-defined]


@pytest.fixture
def tuned(make_base: Callable[[], nn.Module]) -> PeftModel:
    """LoRAs, sparse values, whole vectors, the class token and the head."""
    base = make_base()
    model = get_peft_model(base, SptConfig.from_allocation(random_allocation(outline_model(base), budget=900, rank=2)))
    roles = {role for site in model.base_model.site_parameters().values() for role in site}
    assert roles == {"down", "up", "sparse", "whole"}
    return model


def by_role(model: PeftModel, *roles: str) -> set[int]:
    sites = model.base_model.site_parameters().values()
    return ids(parameter for site in sites for role, parameter in site.items() if role in roles)


def head_of(model: PeftModel) -> nn.Linear:
    return model.base_model.model.head.modules_to_save["default"]


def test_modules_and_the_heads_weight_decay_and_nothing_else(tuned: PeftModel) -> None:
    decayed, kept = parameter_groups(tuned, weight_decay=0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert ids(decayed["params"]) == by_role(tuned, "down", "up") | {id(head_of(tuned).weight)}
    assert ids(kept["params"]) == by_role(tuned, "sparse", "whole") | {id(head_of(tuned).bias)}


def test_what_is_tuned_in_place_can_learn_at_a_rate_of_its_own(tuned: PeftModel) -> None:
    decayed, kept, in_place = parameter_groups(tuned, weight_decay=0.1, learning_rate=0.5, in_place_rate=0.1)
    assert ids(in_place["params"]) == by_role(tuned, "sparse", "whole")
    assert ids(decayed["params"]) == by_role(tuned, "down", "up") | {id(head_of(tuned).weight)}
    assert ids(kept["params"]) == {id(head_of(tuned).bias)}
    assert (in_place["lr"], in_place["weight_decay"]) == (0.05, 0.0)
    assert "lr" not in decayed
    assert "lr" not in kept


def test_a_rate_in_place_needs_the_rate_it_is_a_multiple_of(tuned: PeftModel) -> None:
    with pytest.raises(ArgumentError, match=r"`in_place_rate` 0\.1 needs a `learning_rate`\. Got None"):
        parameter_groups(tuned, weight_decay=0.1, in_place_rate=0.1)


def test_every_trained_parameter_is_in_one_group_and_no_frozen_one(tuned: PeftModel) -> None:
    groups = parameter_groups(tuned, weight_decay=0.1, learning_rate=0.5, in_place_rate=0.1)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert ids(grouped) == ids(parameter for parameter in tuned.parameters() if parameter.requires_grad)
    assert len(grouped) == len(ids(grouped))


def test_a_second_adapter_is_told_apart_like_the_first(tuned: PeftModel) -> None:
    plain = tuned.base_model.unload()
    allocation = random_allocation(outline_model(plain), budget=500, rank=2, seed=1)
    model = get_peft_model(plain, SptConfig.from_allocation(allocation), adapter_name="other")
    sites = model.base_model.site_parameters("other").values()
    expected = ids(each for site in sites for role, each in site.items() if role in {"sparse", "whole"})
    *_, in_place = parameter_groups(model, weight_decay=0.1, learning_rate=0.5, in_place_rate=0.1)
    assert ids(in_place["params"]) == expected


def test_names_decide_nothing(make_model: Callable[[], PeftModel]) -> None:
    model = nn.Module()
    model.spt_sparse = nn.ParameterDict({"default": nn.Parameter(torch.zeros(2, 2))})
    (group,) = parameter_groups(model, weight_decay=0.1, learning_rate=0.5, in_place_rate=0.1)
    assert group["weight_decay"] == 0.1


def test_another_methods_modules_decay(make_model: Callable[[], PeftModel]) -> None:
    model = make_model()
    decayed, kept = parameter_groups(model, weight_decay=0.1)
    assert ids(decayed["params"]) | ids(kept["params"]) == ids(
        each for each in model.parameters() if each.requires_grad
    )
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in kept["params"])


def test_a_token_that_trains_as_it_is_does_so_in_place(make_base: Callable[[], nn.Module]) -> None:
    model = make_base()
    *_, in_place = parameter_groups(model, weight_decay=0.1, learning_rate=0.5, in_place_rate=0.1)
    assert ids(in_place["params"]) == {id(model.cls_token)}
