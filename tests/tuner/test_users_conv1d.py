"""A user's own class may have the name of transformers' ``Conv1D``."""

from __future__ import annotations

import torch
from model_properties import assert_merged_equals_unmerged
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D as TransposedLinear

from sensitune.tuner import SptConfig


class Conv1D(nn.Conv1d):
    """A convolution over time, ``[out, in, width]``."""


def test_it_is_tuned_as_the_convolution_it_is() -> None:
    model = nn.Sequential(Conv1D(4, 6, kernel_size=3), nn.Flatten(), nn.Linear(12, 2))
    tuned = get_peft_model(model, SptConfig(target_modules=["0"], r=2, init_weights=False))
    roles = tuned.base_model.site_parameters()["0.weight"]
    assert (tuple(roles["down"].shape), tuple(roles["up"].shape)) == ((2, 4, 3), (6, 2))
    assert_merged_equals_unmerged(tuned, torch.randn(3, 4, 4))


class Doubled(TransposedLinear):
    """Transformers' layer with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_subclass_of_transformers_own_keeps_its_forward() -> None:
    model = nn.Sequential(Doubled(6, 4), nn.Linear(6, 2))
    x = torch.randn(3, 4)
    expected = model(x)
    torch.testing.assert_close(get_peft_model(model, SptConfig(target_modules=["0"], r=2))(x), expected)
