"""A quantised layer is scored as the matrix that it computes with, and keeps its bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from quantised_models import EVERY_KIND, batches, int8, nf4, same_bytes, small, stored_bytes
from small_language_models import checkpointed
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from tuned_models import seeded

from sensitune.errors import ModelError
from sensitune.sensitivity import estimate_sensitivity
from sensitune.sites import dequantised_weight, outline_model, quantised_kind

Quantise = Callable[..., nn.Module]


def dequantised_copy(model: nn.Module) -> nn.Module:
    """The float model that computes what a quantised one does, made by hand."""
    copied = small()
    for name, module in model.named_modules():
        if quantised_kind(module) is not None:
            copied.get_submodule(name).weight.data = dequantised_weight(module).float()
    return copied


def assert_near(found: torch.Tensor, expected: torch.Tensor, quantise: Quantise) -> None:
    """bitsandbytes' 8-bit layers round their inputs to 8 bits too in eval mode; all others compute with them as are."""
    bound = 3e-2 if quantise is int8 else 1e-5
    assert float((found - expected).norm() / expected.norm()) < bound


@EVERY_KIND
def test_the_sites_are_those_of_the_float_model(quantise: Quantise) -> None:
    quantised, plain = outline_model(quantise(small())), outline_model(small())
    assert quantised == plain
    assert "blocks.1.qkv.weight[k]" in {site.id for site in quantised.sites}


@EVERY_KIND
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_the_scores_are_those_of_the_dequantised_model(quantise: Quantise, micro_batch_size: int | None) -> None:
    model = quantise(small())
    before = stored_bytes(model)
    expected = estimate_sensitivity(dequantised_copy(model), batches())
    found = estimate_sensitivity(model, batches(), micro_batch_size=micro_batch_size)
    for name, value in expected.scores.items():
        assert_near(found.scores[name], value, quantise)
    assert same_bytes(before, model.state_dict())


@EVERY_KIND
@pytest.mark.parametrize("criterion", ["weight_gradient", "magnitude"])
def test_criteria_that_read_the_weight_read_what_is_computed_with(quantise: Quantise, criterion: Any) -> None:
    model = quantise(small())
    expected = estimate_sensitivity(dequantised_copy(model), batches(), criterion=criterion).scores["fc.weight"]
    found = estimate_sensitivity(model, batches(), criterion=criterion).scores["fc.weight"]
    assert_near(found, expected, quantise)


@EVERY_KIND
def test_a_model_in_bfloat16_has_scores_in_float32(quantise: Quantise) -> None:
    model = quantise(small().bfloat16(), torch.bfloat16)
    found = estimate_sensitivity(model, batches())
    assert {score.dtype for score in found.scores.values()} == {torch.float32}
    expected = estimate_sensitivity(quantise(small()), batches())
    for name in ("fc.weight", "blocks.1.proj.weight"):
        torch.testing.assert_close(found.scores[name].sum(), expected.scores[name].sum(), rtol=0.1, atol=0)


@EVERY_KIND
def test_activation_checkpointing_gives_the_same_scores(quantise: Quantise) -> None:
    batch = {"input_ids": torch.arange(12).reshape(2, 6), "labels": torch.arange(12).reshape(2, 6)}
    found = []
    for again in (False, True):
        model = quantise(wide_llama())
        model = checkpointed(model) if again else model
        found.append(estimate_sensitivity(model, [batch]).scores)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


def wide_llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 20}
    return seeded(lambda: LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)))


def test_a_layer_that_was_rearranged_for_inference_is_refused_by_name() -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: the extra `quantised`")
    model = nf4(small()).eval()
    if not model.fc.support_avx512bf16_for_cpu:  # type: ignore[union-attr]
        model.fc.weight.quant_state.packing_format_for_cpu = True  # type: ignore[union-attr]  # as such a CPU's would be
    else:
        with torch.no_grad():
            model(batches()[0][0])
    with pytest.raises(ModelError, match="`fc` was rearranged for inference by bitsandbytes"):
        estimate_sensitivity(model, batches())
