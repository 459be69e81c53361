"""Taking the adapter out of models whose head is more than one layer, and when something goes wrong meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from model_properties import assert_merged_equals_unmerged, assert_unloading_restores, output_of, state_of
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from tuned_models import mixed_allocation, seeded, tune, tuned_vit

from sensitune.tuner._linear import SptLinear

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TEXT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
SIZES = {"vocab_size": 30, "num_labels": 3, "max_position_embeddings": 20}
BART = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
RESNET = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}
TOKENS = {"input_ids": torch.tensor([[0, 5, 6, 2], [0, 7, 8, 2]])}
PIXELS = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}

MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, torch.Tensor]]] = {
    "roberta": (lambda: RobertaForSequenceClassification(RobertaConfig(**TEXT, **SIZES)), TOKENS),
    "electra": (lambda: ElectraForSequenceClassification(ElectraConfig(**TEXT, **SIZES, embedding_size=8)), TOKENS),
    "bart": (lambda: BartForSequenceClassification(BartConfig(**BART, **HEADS, **SIZES)), TOKENS),
    "resnet": (lambda: ResNetForImageClassification(ResNetConfig(**RESNET)), PIXELS),
}


def make(name: str) -> nn.Module:
    return seeded(MODELS[name][0], noise=0.1, dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_a_head_of_several_layers_is_merged_and_unloaded(name: str) -> None:
    inputs = MODELS[name][1]
    (head,) = {each.partition(".")[0] for each in mixed_allocation(make(name)).head}
    assert sum(1 for _ in make(name).get_submodule(head).modules()) > 1
    assert_merged_equals_unmerged(tune(make(name), mixed_allocation(make(name))), inputs)
    assert_unloading_restores(tune(make(name), mixed_allocation(make(name))), make(name), trained=head)


def test_the_merged_head_is_the_one_that_lora_would_leave() -> None:
    merged = tune(make("roberta"), mixed_allocation(make("roberta"))).merge_and_unload()
    reference = get_peft_model(make("roberta"), LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    plain = reference.merge_and_unload()
    assert [(name, type(each)) for name, each in merged.named_modules()] == [
        (name, type(each)) for name, each in plain.named_modules()
    ]
    assert merged.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.filterwarnings("ignore:A.* already merged:UserWarning")
def test_a_merge_that_breaks_half_way_loses_nothing_and_can_be_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = tuned_vit(dtype=torch.float64)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected, merges = output_of(tuned, x), []
    merge = SptLinear.merge

    def breaking(layer: SptLinear, *args: object, **options: object) -> None:
        merges.append(layer)
        if len(merges) == 3:
            raise MemoryError("no memory for a copy")
        merge(layer, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SptLinear, "merge", breaking)
    before = set(state_of(tuned))
    with pytest.raises(MemoryError):
        tuned.merge_and_unload()
    assert {name for name in state_of(tuned) if "tuned_tensors" in name} == {
        name for name in before if "tuned_tensors" in name
    }
    torch.testing.assert_close(output_of(tuned, x), expected)
    assert_merged_equals_unmerged(tuned, x)
