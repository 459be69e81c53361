"""Activation checkpointing and offloading cost time, not exactness: outputs and gradients of a tuned model stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import PeftModel, get_peft_model
from small_language_models import checkpointed, tiny_llama
from torch import nn
from tuned_models import mixed_allocation, trained, tune

from sensitune.errors import MergeError, ModelError
from sensitune.tuner import SptConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume:UserWarning"),  # older PEFT
]

IDS = torch.arange(12).reshape(2, 6)
CPU = torch.device("cpu")


def found(model: nn.Module) -> dict[str, torch.Tensor]:
    loss = model(input_ids=IDS, labels=IDS).loss
    named = trained(model)
    gradients = torch.autograd.grad(loss, list(named.values()))
    return {"loss": loss.detach()} | dict(zip(named, gradients, strict=True))


def tuned(base: nn.Module, structured: str, turn: int) -> PeftModel:
    allocation = mixed_allocation(tiny_llama(), structured, turn)
    return tune(base, allocation, dropout=0.0, drop_path=0.0).double().train()


# In the three turns every site is tuned in every way.
@pytest.mark.parametrize(
    ("place", "structured", "turn"),
    [
        ("checkpointed", "lora", 0),
        ("checkpointed", "adapter", 1),
        ("cpu", "lora", 0),
        ("cpu", "adapter", 1),
        ("cpu", "lora", 2),
        ("disk", "lora", 1),
        ("checkpointed cpu", "adapter", 2),
        ("checkpointed cpu", "lora", 0),
    ],
)
def test_gradients_are_those_of_the_model_in_memory(place: str, structured: str, turn: int, tmp_path: Path) -> None:
    expected = found(tuned(tiny_llama().double(), structured, turn))
    base = tiny_llama().double()
    if "checkpointed" in place:
        base = checkpointed(base)
    if "cpu" in place:
        cpu_offload(base, execution_device=CPU)
    elif "disk" in place:
        disk_offload(base, str(tmp_path), execution_device=CPU)
    gradients = found(tuned(base, structured, turn))
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-8, atol=1e-12)


def test_an_adapter_of_an_offloaded_model_is_saved_loaded_and_taken_out(tmp_path: Path) -> None:
    expected = tuned(tiny_llama().double(), "lora", 0).eval()
    base = tiny_llama().double()
    cpu_offload(base, execution_device=CPU)
    forwards = {name: vars(module).get("_old_forward") for name, module in base.named_modules()}
    plain_logits = base(input_ids=IDS).logits
    model = tuned(base, "lora", 0).eval()
    torch.testing.assert_close(model(input_ids=IDS).logits, expected(input_ids=IDS).logits)
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=IDS).logits, plain_logits)
    with pytest.raises(MergeError, match="is offloaded, and a merge would not reach it. Save the adapter and load"):
        model.merge_and_unload()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama().double(), tmp_path).eval()
    torch.testing.assert_close(again(input_ids=IDS).logits, expected(input_ids=IDS).logits)
    unloaded = model.unload()
    torch.testing.assert_close(unloaded(input_ids=IDS).logits, plain_logits)
    assert forwards == {name: vars(module).get("_old_forward") for name, module in unloaded.named_modules()}
    assert all(each.is_meta and not each.requires_grad for each in unloaded.parameters())


def test_a_convolution_that_is_offloaded_is_refused_by_name() -> None:
    base = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(8, 3))
    cpu_offload(base, execution_device=CPU)
    with pytest.raises(ModelError, match="`0` cannot be tuned where it is offloaded: Conv1d is no plain linear layer"):
        get_peft_model(base, SptConfig(target_modules=["0"], r=1))
