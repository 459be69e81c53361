"""What models keep between calls, of what they computed from parameters, never outlives the values it was made from."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_properties import assert_merged_equals_unmerged, output_of
from peft import PeftModel, get_peft_model
from timm.models.levit import Attention
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tuned_models import LABELS, gradients_of, seeded, trained

from sensitune.sensitivity import estimate_sensitivity
from sensitune.tuner import SptConfig

X = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class LeVit(nn.Module):
    """timm's own attention, which keeps its biases in evaluation and forgets them when it is set to training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(8, key_dim=4, num_heads=2, resolution=(2, 2), use_conv=False)
        self.head = nn.Linear(8, 5)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x).mean(1))


class Prepared(nn.Module):
    """Computes its bias when it is set to evaluation, as the first LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.indices = nn.Parameter(torch.ones(3)), torch.tensor([0, 1, 2, 1, 0, 1, 2, 1])
        self.head = nn.Linear(8, 5)

    @torch.no_grad()
    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        if mode and hasattr(self, "prepared"):
            del self.prepared
        elif not mode:
            self.prepared = self.table[self.indices]
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x * (self.table[self.indices] if self.training else self.prepared)).mean(1))


class KeepsAProduct(nn.Module):
    """Keeps, and never forgets, a product of the weight of a layer inside with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table, self.head = nn.Linear(8, 8), nn.Parameter(torch.ones(8)), nn.Linear(8, 5)
        self._cache: torch.Tensor | None = None

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training or self._cache is None:
            self._cache = self.layer.weight * self.table
        return self.head((x @ self._cache).mean(1))


# Model -> how to make it, what is tuned in it
MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "LeViT's attention": (LeVit, ["attention.attention_biases", "attention.qkv.linear.weight"]),
    "prepared when set to evaluation": (Prepared, ["table"]),
    "a product kept for ever": (KeepsAProduct, ["table", "layer.weight"]),
    "a product of a layer's weight kept for ever": (KeepsAProduct, ["layer.weight"]),
}


def make(name: str) -> nn.Module:
    return seeded(MODELS[name][0], noise=0.3, dtype=torch.float64)


def tune(model: nn.Module, name: str) -> PeftModel:
    plan = {
        parameter: {
            "parameter": parameter,
            "form": "whole",
            "size": model.get_parameter(parameter).numel(),
            "shape": list(model.get_parameter(parameter).shape),
        }
        for parameter in MODELS[name][1]
    }
    modules = [parameter.rpartition(".")[0] for parameter in plan]
    target = [module for module in modules if module] or "dummy-target-modules"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(model, SptConfig(site_plan=plan, target_modules=target, init_weights=False)).eval()


def computed_anew(tuned: PeftModel, name: str) -> torch.Tensor:
    """What a plain model that never ran gives with the tuned values."""
    plain = make(name)
    with torch.no_grad():
        for site, roles in tuned.base_model.site_parameters().items():
            plain.get_parameter(site).add_(roles["whole"])
        for module, own in zip(plain.modules(), make(name).modules(), strict=True):
            vars(module).update({key: value for key, value in vars(own).items() if "cache" in key})
        return plain.train().eval()(X)


def predict(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return output_of(model, X)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_kept_in_evaluation_outlives_a_step_a_switch_disabling_or_a_merge(name: str) -> None:
    base = make(name)
    before = predict(base)
    tuned = tune(base, name)
    torch.testing.assert_close(predict(tuned), computed_anew(tuned, name))
    assert not torch.allclose(predict(tuned), before)
    with tuned.disable_adapter():
        torch.testing.assert_close(predict(tuned), before)
    torch.testing.assert_close(predict(tuned), computed_anew(tuned, name))

    optimizer = torch.optim.SGD(trained(tuned).values(), lr=0.5)
    tuned.train()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(tuned(X), LABELS).backward()
        optimizer.step()
    tuned.eval()
    torch.testing.assert_close(predict(tuned), computed_anew(tuned, name))

    tuned.merge_adapter()
    torch.testing.assert_close(predict(tuned), computed_anew(tuned, name))
    tuned.unmerge_adapter()
    torch.testing.assert_close(predict(tuned), computed_anew(tuned, name))
    expected = predict(tuned)
    merged = assert_merged_equals_unmerged(copy.deepcopy(tuned), X)
    torch.testing.assert_close(predict(merged), expected)
    torch.testing.assert_close(predict(tuned.unload()), before)


@pytest.mark.parametrize("name", ["LeViT's attention", "a product kept for ever"])
def test_steps_in_evaluation_mode_follow_the_tuned_values(name: str) -> None:
    tuned = tune(make(name), name)
    gradients = [gradients_of(tuned, lambda: F.cross_entropy(tuned(X), LABELS)) for _ in range(2)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(predict(tuned), computed_anew(tuned, name))


class Noting(LeVit):
    """Counts its calls and shows its last features."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls, self.last = self.calls + 1, x
        return super().forward(x)


def test_what_a_module_notes_for_others_to_look_at_stays() -> None:
    model = seeded(Noting, dtype=torch.float64)
    model.scale_cache, model.scale = {}, nn.Parameter(torch.ones(2, dtype=torch.float64))
    plan = {"scale": {"parameter": "scale", "form": "whole", "size": 2, "shape": [2]}}
    tuned = get_peft_model(model, SptConfig(site_plan=plan, target_modules="dummy-target-modules"))
    tuned(X)
    tuned(X)
    assert tuned.base_model.model.calls == 2
    assert tuned.base_model.model.last is X


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen_before", [False, True])
@pytest.mark.parametrize("name", ["LeViT's attention", "a product kept for ever"])
def test_scores_are_of_the_parameters_whatever_the_model_keeps(name: str, seen_before: bool) -> None:
    batches = [(X, LABELS), (X.flip(0) * 2, LABELS), (X[:2], LABELS[:2])]
    model = make(name)
    if seen_before:
        predict(model)
    kept = {id(module): dict(vars(module)) for module in model.modules()}
    contents = [dict(value) for each in kept.values() for value in each.values() if isinstance(value, dict)]
    found = estimate_sensitivity(model, batches, score_dtype=torch.float64)

    expected = {parameter: torch.zeros_like(score) for parameter, score in found.scores.items()}
    for x, y in batches:
        fresh = make(name)  # nothing is kept in it
        fresh.requires_grad_(True)
        F.cross_entropy(fresh(x), y).backward()
        for parameter in expected:
            gradient = fresh.get_parameter(parameter).grad
            expected[parameter] += 0 if gradient is None else gradient.square()
    torch.testing.assert_close(dict(found.scores), expected)
    after = {id(module): dict(vars(module)) for module in model.modules()}
    assert all(after[each].keys() == kept[each].keys() for each in kept)
    assert all(after[each][own] is value for each in kept for own, value in kept[each].items() if own != "training")
    assert contents == [dict(value) for each in after.values() for value in each.values() if isinstance(value, dict)]


# -- recurrent networks -----------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(8, 6, batch_first=True, bidirectional=True), nn.Linear(12, 5)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0].mean(1))


def tuned_rnn(kind: type[nn.RNNBase]) -> PeftModel:
    plan: dict[str, Any] = {
        "rnn.weight_hh_l0": {"parameter": "rnn.weight_hh_l0", "form": "sparse", "size": 7},
        "rnn.bias_ih_l0_reverse": {"parameter": "rnn.bias_ih_l0_reverse", "form": "whole"},
    }
    model = seeded(lambda: Recurrent(kind), dtype=torch.float64)
    for parameter, each in plan.items():
        shape = list(model.get_parameter(parameter).shape)
        each.update(shape=shape, size=each.get("size", shape[0]))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = SptConfig(site_plan=plan, target_modules=["rnn"], init_weights=False, modules_to_save=["head"])
        return get_peft_model(model, config).eval()


RNNS = [nn.LSTM, nn.GRU, nn.RNN]


@pytest.mark.parametrize("kind", RNNS)
@pytest.mark.parametrize("used", ["in training", "without gradients", "converted"])
def test_a_recurrent_network_is_copied_and_pickled_after_a_forward(kind: type[nn.RNNBase], used: str) -> None:
    tuned = tuned_rnn(kind)
    if used == "in training":
        tuned.train()(X).sum().backward()
        tuned.eval()
    elif used == "converted":
        tuned.float().double()
    expected = predict(tuned)
    averaged = AveragedModel(tuned)
    averaged.update_parameters(tuned)
    copies = [copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned)), averaged.module, copy.deepcopy(averaged.module)]
    for each in copies:
        assert torch.equal(predict(each), expected)
    with torch.no_grad():
        tuned.base_model.site_parameters()["rnn.weight_hh_l0"]["sparse"].add_(1.0)
    assert not torch.allclose(predict(tuned), expected)
    for each in copies:
        assert torch.equal(predict(each), expected)
        assert gradients_of(each, lambda one=each: one(X).sum())


@pytest.mark.parametrize("kind", RNNS)
def test_a_recurrent_network_keeps_no_graph_alive(kind: type[nn.RNNBase]) -> None:
    tuned = tuned_rnn(kind).train()
    tuned(X).sum().backward()
    rnn = tuned.base_model.model.rnn
    assert all(weight.is_leaf for weight in rnn._flat_weights)
    assert type(tuned.unload().rnn) is kind
