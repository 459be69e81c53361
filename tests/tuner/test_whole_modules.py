"""What trains whole beside an adapter is matched by its exact name, not by how its name ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from sensitune import SptConfig
from sensitune.allocation import Allocation, random_allocation
from sensitune.errors import ModelError
from sensitune.sites import outline_model


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(12, 12)
        self.fc = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(torch.tanh(self.mix(x)))


class Model(nn.Module):
    """Its head's name is also how the names of other layers end."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x))


def made() -> tuple[Model, Allocation]:
    torch.manual_seed(0)
    model = Model()
    outline = outline_model(model, exclude=["blocks.1.*"])
    return model, random_allocation(outline, budget=100, rank=2)


def whole(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]


def test_the_budget_and_the_head_are_trained_and_nothing_else() -> None:
    model, allocation = made()
    tuned = get_peft_model(model, SptConfig.from_allocation(allocation))
    assert whole(tuned) == ["base_model.model.fc"]
    trained = sum(each.numel() for each in tuned.parameters() if each.requires_grad)
    assert trained == allocation.trainable_params + 12 * 3 + 3
    assert tuned.peft_config["default"].modules_to_save == ["fc"]


def test_the_exact_head_is_saved_loaded_switched_and_merged(tmp_path: Path) -> None:
    model, allocation = made()
    x = torch.randn(4, 12)
    tuned = get_peft_model(model, SptConfig.from_allocation(allocation, dropout=0.0, drop_path=0.0)).eval()
    with torch.no_grad():
        for each in tuned.parameters():
            if each.requires_grad:
                each.add_(torch.randn_like(each))
    expected = tuned(x)
    tuned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(made()[0], tmp_path).eval()
    assert whole(loaded) == whole(tuned)
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)
    loaded.load_adapter(tmp_path, adapter_name="again")
    assert whole(loaded) == whole(tuned)
    loaded.set_adapter("again")
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(loaded.merge_and_unload()(x), expected)


def test_a_name_that_is_no_full_name_is_a_suffix_as_in_peft() -> None:
    model, allocation = made()
    tuned = get_peft_model(model, SptConfig.from_allocation(allocation, modules_to_save=["fc", "1"]))
    assert whole(tuned) == ["base_model.model.blocks.1", "base_model.model.fc"]
    plain = get_peft_model(Model(), SptConfig(target_modules=["mix"], modules_to_save=["fc"]))
    assert len(whole(plain)) == 3


def test_a_task_type_for_which_peft_matches_suffixes_anyway_is_refused_where_that_makes_a_difference() -> None:
    model, allocation = made()
    before = {name: each.requires_grad for name, each in model.named_parameters()}
    with pytest.raises(
        ModelError, match=r"type SEQ_CLS PEFT would train `blocks.0.fc` whole as well, .* ends like one of fc"
    ):
        get_peft_model(model, SptConfig.from_allocation(allocation, task_type="SEQ_CLS"))
    assert {name: each.requires_grad for name, each in model.named_parameters()} == before


def test_a_head_that_goes_by_two_names_is_refused() -> None:
    model, allocation = made()
    model.classifier = model.fc
    with pytest.raises(ModelError, match="`fc` is to be trained whole, and `classifier` is the same module"):
        get_peft_model(model, SptConfig.from_allocation(allocation))
