"""Adapters on a base that is stored in few bits: the values of the dequantised base's, and its bytes stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_properties import untouched
from peft import LoraConfig, PeftModel, get_peft_model
from quantised_models import EVERY_KIND, Small, batches, int8, nf4, same_bytes, small, stored_bytes, torchao_int8
from small_language_models import tiny_llama
from torch import nn
from torch.nn import functional
from transformers import BitsAndBytesConfig, LlamaForCausalLM, TorchAoConfig
from tuned_models import add, mixed_allocation, trained, tune

from sensitune.allocation import allocate
from sensitune.errors import AllocationMismatchError, MergeError, ModelError
from sensitune.sensitivity import estimate_sensitivity
from sensitune.sites import quantised_kind, stored_bytes_kept
from sensitune.tuner import SptConfig, dequantise
from sensitune.tuner._beside import SptBeside
from sensitune.tuner.plain_lora import export_lora

Quantise = Callable[..., nn.Module]
X, Y = batches(1)[0]


def plain(quantise: Quantise, dtype: torch.dtype = torch.float32) -> nn.Module:
    """What the quantised model computes, with plain layers."""
    return dequantise(quantise(small().to(dtype)), dtype)


def bound(quantise: Quantise) -> float:
    """bitsandbytes' 8-bit layers round their inputs to 8 bits too in eval mode; all others compute with them as are."""
    return 5e-2 if quantise is int8 else 1e-5


def assert_near(found: torch.Tensor, expected: torch.Tensor, quantise: Quantise) -> None:
    found, expected = found.detach(), expected.detach()
    assert float((found - expected).norm()) <= bound(quantise) * float(expected.norm())


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    loss = functional.cross_entropy(model(X), Y)
    named = trained(model)
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


@EVERY_KIND
@pytest.mark.parametrize("structured", ["lora", "adapter"])
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_outputs_and_gradients_are_those_of_the_dequantised_base(
    quantise: Quantise, structured: str, turn: int
) -> None:
    allocation = mixed_allocation(small(), structured, turn)
    base = quantise(small())
    before = stored_bytes(base)
    quiet = {"dropout": 0.0, "drop_path": 0.0}
    tuned, expected = tune(base, allocation, **quiet), tune(plain(quantise), allocation, **quiet)
    assert_near(tuned(X), expected(X), quantise)
    found, wanted = gradients(tuned.train()), gradients(expected.train())
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name
    assert same_bytes(before, tuned.unload().state_dict())


@EVERY_KIND
def test_three_steps_of_training_go_as_on_the_dequantised_base(quantise: Quantise) -> None:
    allocation = allocate(estimate_sensitivity(quantise(small()), batches()), budget=900, rank=2)
    losses = []
    for base in (quantise(small()), plain(quantise)):
        before = stored_bytes(base)
        torch.manual_seed(3)
        tuned = get_peft_model(base, SptConfig.from_allocation(allocation, dropout=0.0, drop_path=0.0))
        assert sum(p.numel() for p in trained(tuned).values()) == 900 + 3 * 64 + 3
        optimizer = torch.optim.SGD(trained(tuned).values(), lr=0.1)
        losses.append([])
        tuned.train()
        for _ in range(3):
            loss = functional.cross_entropy(tuned(X), Y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(float(loss.detach()))
        unloaded = tuned.unload().state_dict()
        kept = {name: value for name, value in before.items() if not name.startswith("head")}
        assert same_bytes(kept, {name: unloaded[name] for name in kept})
    assert losses[0] == pytest.approx(losses[1], rel=bound(quantise))
    assert losses[0][2] < losses[0][0]


@EVERY_KIND
def test_an_evaluation_between_two_steps_changes_nothing(quantise: Quantise) -> None:
    """bitsandbytes rearranges 4-bit weights in such a forward on some processors, and no gradient comes through."""
    tuned = tune(quantise(small()), mixed_allocation(small()))
    before, expected = stored_bytes(tuned), gradients(tuned)
    with torch.no_grad():
        tuned(X)
        with tuned.disable_adapter():
            tuned(X)
    assert same_bytes(before, tuned.state_dict())
    for name, gradient in gradients(tuned).items():
        assert torch.equal(gradient, expected[name])


@EVERY_KIND
def test_several_adapters_add_switch_and_are_disabled(quantise: Quantise) -> None:
    first, second = mixed_allocation(small(), turn=0), mixed_allocation(small(), turn=1)
    headless = {"modules_to_save": None}  # PEFT has one copy of a head active at a time
    tuned, expected = tune(quantise(small()), first, **headless), tune(plain(quantise), first, **headless)
    for model in (tuned, expected):
        add(model, second, **headless)
        model.eval()
    for active in ("other", ["default", "other"], "default"):
        for model in (tuned, expected):
            model.base_model.set_adapter(active)
        assert_near(tuned(X), expected(X), quantise)
    with tuned.disable_adapter():
        torch.testing.assert_close(tuned(X), quantise(small()).eval()(X.clone().requires_grad_()))
    for model in (tuned, expected):
        model.base_model.add_weighted_adapter(["default", "other"], [0.5, 2.0], "both")
        model.base_model.set_adapter("both")
        model.eval()
    assert_near(tuned(X), expected(X), quantise)
    tuned.base_model.set_adapter("default")
    tuned.delete_adapter("both")
    assert set(tuned.peft_config) == {"default", "other"}


@EVERY_KIND
def test_an_adapter_is_saved_and_loaded_on_a_quantised_and_on_a_float_base(quantise: Quantise, tmp_path: Path) -> None:
    tuned = tune(quantise(small()), mixed_allocation(small()))
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(quantise(small()), tmp_path).eval()
    torch.testing.assert_close(again(X), tuned(X))
    on_float = PeftModel.from_pretrained(plain(quantise), tmp_path).eval()
    assert_near(on_float(X), tuned(X), quantise)
    on_float.save_pretrained(tmp_path / "float")
    back = PeftModel.from_pretrained(quantise(small()), tmp_path / "float").eval()
    torch.testing.assert_close(back(X), tuned(X))


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without:UserWarning")
@EVERY_KIND
def test_a_merge_is_refused_before_anything_changes_and_both_ways_out_work(quantise: Quantise, tmp_path: Path) -> None:
    allocation = mixed_allocation(small())
    sites = {site: rank for site, rank in allocation.structured.items() if site.endswith(("weight", "]"))}
    matrices = {site: each for site, each in allocation.sparse.items() if "weight" in site and "norm" not in site}
    servable = dataclasses.replace(allocation, structured=sites, sparse=matrices, vectors=())
    tuned = tune(quantise(small()), servable)
    before = stored_bytes(tuned)
    for merge in (tuned.merge_adapter, tuned.merge_and_unload):
        with pytest.raises(
            MergeError, match=r"stored in few bits .* `sensitune.export_lora`; .* `sensitune.dequantise"
        ):
            merge()
    assert same_bytes(before, tuned.state_dict())
    expected = tuned(X)

    tuned.save_pretrained(tmp_path / "spt")
    merged = PeftModel.from_pretrained(plain(quantise), tmp_path / "spt").eval().merge_and_unload()
    assert type(merged.fc) is nn.Linear
    assert_near(merged(X), expected, quantise)

    export_lora(tuned, tmp_path / "lora")
    served = PeftModel.from_pretrained(quantise(small()), tmp_path / "lora").eval()
    assert type(served.peft_config["default"]) is LoraConfig
    with stored_bytes_kept(served):
        assert_near(served(X), expected, quantise)


@EVERY_KIND
def test_a_base_in_bfloat16_trains_its_adapter_in_float32(quantise: Quantise) -> None:
    tuned = tune(quantise(small().bfloat16(), torch.bfloat16), mixed_allocation(small()))
    assert {parameter.dtype for name, parameter in trained(tuned).items() if "spt_" in name} == {torch.float32}
    x = X.bfloat16()
    assert tuned(x).dtype == torch.bfloat16
    assert all(bool(gradient.isfinite().all()) for gradient in _gradients_of(tuned, x).values())


def _gradients_of(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    named = trained(model)
    found = torch.autograd.grad(functional.cross_entropy(model(x).float(), Y), list(named.values()))
    return dict(zip(named, found, strict=True))


@EVERY_KIND
def test_target_modules_without_an_allocation_work_too(quantise: Quantise) -> None:
    for options in ({"r": 2}, {"r": 0, "num_sparse": 20}, {"r": 0, "num_sparse": 10**6}):
        torch.manual_seed(0)
        tuned = get_peft_model(quantise(small()), SptConfig(target_modules=["proj"], init_weights=False, **options))
        torch.manual_seed(0)
        expected = get_peft_model(plain(quantise), SptConfig(target_modules=["proj"], init_weights=False, **options))
        expected.load_state_dict({k: v for k, v in tuned.state_dict().items() if "spt_" in k}, strict=False)
        assert_near(tuned.eval()(X), expected.eval()(X), quantise)


@EVERY_KIND
def test_dequantising_gives_plain_layers_that_compute_the_same(quantise: Quantise) -> None:
    model = quantise(small()).eval()
    expected = model(X.clone().requires_grad_())
    found = dequantise(quantise(small())).eval()
    assert [quantised_kind(module) for module in found.modules()] == [None] * len(list(found.modules()))
    assert {type(found.fc), type(found.blocks[1].qkv)} == {nn.Linear}  # type: ignore[index, union-attr]
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert_near(found(X), expected, quantise)
    assert {p.dtype for p in dequantise(quantise(small()), torch.bfloat16).fc.parameters()} == {torch.bfloat16}


def test_dequantising_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ModelError, match="has no quantised layer that could be dequantised"):
        dequantise(small())
    with pytest.raises(ModelError, match="takes the plain model, and this one holds adapters"):
        dequantise(tune(small(), mixed_allocation(small())))


def test_unloading_gives_a_layer_its_own_ways_back() -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: the extra `quantised`")
    base = nf4(small())
    base.fc.support_avx512bf16_for_cpu = True  # type: ignore[union-attr]  # as on a processor that has it
    layer = base.fc
    tuned = tune(base, mixed_allocation(small()))
    assert not layer.support_avx512bf16_for_cpu  # type: ignore[union-attr]
    tuned.unload()
    assert layer.support_avx512bf16_for_cpu  # type: ignore[union-attr]


@EVERY_KIND
def test_a_head_in_few_bits_cannot_train_whole_and_is_refused_by_name(quantise: Quantise) -> None:
    base = small()
    base.head = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3))
    quantise(base)
    base.fc.support_avx512bf16_for_cpu = True  # as on a processor that has it
    with pytest.raises(ModelError, match="`head` is to train whole, but `head.0` is stored in few bits by Linear"):
        tune(base, mixed_allocation(base))
    assert base.fc.support_avx512bf16_for_cpu
    assert not hasattr(base, "peft_config")
    assert type(base.fc) is type(quantise(small()).fc)


def test_an_allocation_of_another_shape_is_refused_by_the_shape_that_is_computed_with() -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: the extra `quantised`")
    other = mixed_allocation(Small(128))
    with pytest.raises(AllocationMismatchError, match=r"has shape \[128, 128\], but `fc.weight` .* is \[64, 64\]"):
        tune(nf4(small()), other)


def test_a_weight_of_an_unknown_storage_is_refused_by_name() -> None:
    class Packed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)

    model: Any = nn.Sequential(nn.Linear(4, 4), Packed())
    message = r"`1` cannot be tuned: its weight is stored as torch.uint8 by Packed, which"
    with untouched(model), pytest.raises(ModelError, match=message):
        get_peft_model(model, SptConfig(target_modules=["0", "1"], r=2))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # that PEFT reads
@EVERY_KIND
def test_a_model_that_transformers_quantises_goes_from_scores_to_a_plain_checkpoint(
    quantise: Quantise, tmp_path: Path
) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")

    def load() -> nn.Module:
        return LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=_settings(quantise))

    batch = {"input_ids": torch.arange(12).reshape(2, 6), "labels": torch.arange(12).reshape(2, 6)}
    base = load()
    sensitivity = estimate_sensitivity(base, [batch])
    allocation = allocate(sensitivity, budget=300, rank=1)
    tuned = get_peft_model(base, SptConfig.from_allocation(allocation, init_weights=False)).eval()
    assert [type(each).__name__ for each in tuned.modules() if isinstance(each, SptBeside)]
    expected = tuned(**batch).logits
    tuned.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(**batch).logits, expected)
    merged = PeftModel.from_pretrained(dequantise(load()), tmp_path / "adapter").eval().merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    plain_model = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert not getattr(plain_model.config, "quantization_config", None)
    assert_near(plain_model(**batch).logits, expected, quantise)


def _settings(quantise: Quantise) -> Any:
    if quantise is nf4:
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    if quantise is int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    if quantise is torchao_int8:
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(8)))


@pytest.mark.gpu
@EVERY_KIND
def test_scores_outputs_and_gradients_on_a_gpu_are_those_of_the_dequantised_base(quantise: Quantise) -> None:
    allocation = mixed_allocation(small())
    base, plain_base = quantise(small().cuda()), dequantise(quantise(small().cuda()), torch.float32)
    batch = (X.cuda(), Y.cuda())
    found, expected = (estimate_sensitivity(model, [batch]) for model in (base, plain_base))
    for name, value in expected.scores.items():
        assert float((found.scores[name] - value).norm() / value.norm()) < 5e-2
    quiet = {"dropout": 0.0, "drop_path": 0.0}
    first, second = tune(base, allocation, **quiet), tune(plain_base, allocation, **quiet)
    with torch.no_grad():
        assert float((first(batch[0]) - second(batch[0])).norm() / second(batch[0]).norm()) < 5e-2
