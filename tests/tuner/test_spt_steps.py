"""A training step leaves nothing behind, and starts alike whatever ran before it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from model_properties import assert_same_state, state_of
from peft import PeftModel, get_peft_model
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from tuned_models import IMAGES, LABELS, add, gradients_of, mixed_allocation, seeded, tiny_vit, tuned_vit

from sensitune.tuner import SptConfig


def watch_activations(model: nn.Module) -> dict[str, StorageWeakRef]:
    """By module name, what every module inside reads and returns, without keeping any of it alive."""
    seen: dict[str, StorageWeakRef] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            for role, tensor in (("in", arguments[0]), ("out", output)):
                if tensor.requires_grad:
                    seen[f"{name} {role}"] = StorageWeakRef(tensor.untyped_storage())

        return hook

    for name, module in model.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.GELU)):  # a hook on a linear layer would lead around the kernels
            module.register_forward_hook(remember(name))
    return seen


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("structured", ["lora", "adapter"])
def test_nothing_of_a_steps_activations_outlives_backward_while_the_loss_is_held(
    structured: str, dropout: float
) -> None:
    tuned = tuned_vit(structured, dropout=dropout, drop_path=dropout).train()
    seen = watch_activations(tuned)
    loss = F.cross_entropy(tuned(IMAGES), LABELS)
    alive = {name for name, storage in seen.items() if not storage.expired()}
    loss.backward()
    assert {name for name in alive if ".norm" in name}
    assert {name for name in alive if ".act" in name}
    assert not {name for name in alive if not seen[name].expired()}
    assert loss.grad_fn is not None


Make = Callable[[], PeftModel]


def two_adapters() -> PeftModel:
    tuned = tuned_vit(modules_to_save=None)
    add(tuned, mixed_allocation(tiny_vit(), turn=1), modules_to_save=None)
    tuned.base_model.set_adapter(["default", "other"])
    return tuned


FIRST: dict[str, tuple[Make, torch.dtype, bool]] = {
    "float32": (tuned_vit, torch.float32, False),
    "bfloat16 autocast": (tuned_vit, torch.float32, True),
    "bfloat16 base": (lambda: tuned_vit(dtype=torch.bfloat16), torch.bfloat16, False),
    "two adapters": (two_adapters, torch.float32, False),
}


def recurrent_and_convolutional(r: int) -> PeftModel:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6)
            self.rnn, self.head = nn.GRU(6, 6, batch_first=True), nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.conv(x).flatten(2).mT)
            return self.head(self.rnn(x)[0].mean(1))

    plan = {
        "rnn.weight_hh_l0": {"parameter": "rnn.weight_hh_l0", "form": "sparse", "size": 7, "shape": [18, 6]},
        "norm.weight": {"parameter": "norm.weight", "form": "whole", "size": 6, "shape": [6]},
        "conv.weight": {
            "parameter": "conv.weight",
            "form": "lora" if r else "sparse",
            "size": r or 9,
            "shape": [6, 3, 4, 4],
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = SptConfig(site_plan=plan, target_modules=["rnn", "norm", "conv"], init_weights=False)
        return get_peft_model(seeded(Network), config)


FIRST |= {
    "other layers, LoRA": (lambda: recurrent_and_convolutional(2), torch.float32, False),
    "other layers, sparse": (lambda: recurrent_and_convolutional(0), torch.float32, False),
}


@pytest.mark.parametrize("name", FIRST)
def test_a_first_forward_in_inference_mode_does_not_change_the_training_after_it(name: str) -> None:
    make, dtype, autocast = FIRST[name]
    images = IMAGES.to(dtype)

    def context() -> contextlib.AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16, enabled=autocast)

    def gradients(tuned: PeftModel) -> dict[str, torch.Tensor]:
        def loss() -> torch.Tensor:
            with context():
                return F.cross_entropy(tuned(images).float(), LABELS)

        torch.manual_seed(0)
        return gradients_of(tuned.train(), loss)

    evaluated, fresh = make(), make()
    assert_same_state(state_of(evaluated), fresh)
    with torch.inference_mode(), context():
        evaluated(images)
    torch.testing.assert_close(gradients(evaluated), gradients(fresh), rtol=0.0, atol=0.0)
