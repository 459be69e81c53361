"""Where a site lies in its parameter, and which layers store their weight transposed."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sensitune.sites import Geometry, find_head, find_sites, is_conv1d, outline_model

ROWS = Geometry(parameter="attn.qkv.weight", shape=(2, 3), rows=(4, 6))
COLUMNS = Geometry(parameter="c_attn.weight", shape=(3, 2), rows=(4, 6), transposed=True)
WHOLE = Geometry(parameter="scale", shape=(2, 3))


@pytest.mark.parametrize(
    ("place", "tensor", "expected"),
    [
        (ROWS, torch.arange(18).view(6, 3), [[12, 13, 14], [15, 16, 17]]),
        (COLUMNS, torch.arange(18).view(3, 6), [[4, 5], [10, 11], [16, 17]]),
        (WHOLE, torch.arange(6).view(2, 3), [[0, 1, 2], [3, 4, 5]]),
    ],
)
def test_a_view_of_the_parameter_is_where_the_site_lies(
    place: Geometry, tensor: torch.Tensor, expected: list[list[int]]
) -> None:
    assert place.fits(tensor)
    assert place.of(tensor).tolist() == expected
    assert place.of(tensor).data_ptr() == tensor.data_ptr() + tensor.element_size() * expected[0][0]


@pytest.mark.parametrize("place", [ROWS, COLUMNS])
def test_features_and_names_are_those_of_the_layer(place: Geometry) -> None:
    assert (place.out_features, place.in_features, place.numel, place.start) == (2, 3, 6, 4)
    assert (place.name, WHOLE.name) == ("weight", "scale")
    assert (place.module, WHOLE.module) == (place.parameter.removesuffix(".weight"), "")
    assert WHOLE.start == 0


@pytest.mark.parametrize(
    ("place", "shape"),
    [
        (ROWS, (5, 3)),  # ends within the rows
        (ROWS, (6, 4)),
        (ROWS, (6,)),
        (ROWS, ()),
        (COLUMNS, (3, 5)),
        (COLUMNS, (4, 6)),
        (WHOLE, (3, 2)),
        (WHOLE, (6,)),
    ],
)
def test_a_parameter_of_another_shape_does_not_fit(place: Geometry, shape: tuple[int, ...]) -> None:
    assert not place.fits(torch.zeros(shape))


def test_a_users_own_conv1d_is_not_taken_for_the_one_of_transformers() -> None:
    theirs = Conv1D(6, 4)
    own = type("Conv1D", (nn.Conv1d,), {})(4, 6, kernel_size=1)
    assert is_conv1d(theirs)
    assert not is_conv1d(own)
    sites = {site.id: site for site in find_sites(nn.ModuleDict({"theirs": theirs, "own": own}))}
    assert sites["theirs.weight"].transposed
    for site in (sites["theirs.weight"], sites["own.weight"]):
        assert (site.kind, site.out_features, site.in_features) == ("matrix", 6, 4)
    assert not sites["own.weight"].transposed


def test_no_conv1d_is_found_where_transformers_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "transformers.pytorch_utils")
    assert not is_conv1d(Conv1D(6, 4))
    assert "transformers.pytorch_utils" not in sys.modules


def test_the_head_is_found_without_an_outline() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model.pretrained_cfg = {"classifier": "1"}
    assert find_head(model) == outline_model(model).head == ("1",)
    assert find_head(nn.Linear(4, 4)) == ()
