"""What runs out of memory is named, with what makes it need less."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sensitune._memory import naming_stage
from sensitune.errors import MemoryLimitError, describe
from sensitune.sensitivity import estimate_sensitivity


class Greedy(nn.Module):
    """A layer that wants more than any machine has."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(x) + torch.empty(2**50)[:3]
        return logits


def test_a_batch_that_does_not_fit_is_named_with_what_to_lower() -> None:
    model = Greedy()
    batches = [(torch.randn(2, 4), torch.tensor([0, 1]))]
    with pytest.raises(
        MemoryLimitError, match=r"not enough memory for scoring a batch. Lower `micro_batch_size`, turn"
    ):
        estimate_sensitivity(model, batches)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_whoever_says_so_it_is_one_sentence_about_the_innermost_stage(error: Exception) -> None:
    with (
        pytest.raises(MemoryLimitError) as found,
        naming_stage("all of it", "Buy more."),
        naming_stage("a step", "Lower `batch_size`."),
    ):
        raise error
    assert describe(found.value) == "There is not enough memory for a step. Lower `batch_size`."
    assert isinstance(found.value, MemoryError)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes") as found, naming_stage("a step", "Lower `batch_size`."):
        raise RuntimeError("shapes differ")
    assert not isinstance(found.value, MemoryLimitError)
