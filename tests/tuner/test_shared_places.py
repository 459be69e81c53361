"""What several places share: a layer is tuned in all of them, a tied parameter in none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from model_properties import (
    Inputs,
    assert_merged_equals_unmerged,
    assert_reload_equals,
    assert_unloading_restores,
    assert_unmerging_restores,
    output_of,
    state_of,
    untouched,
)
from newer import skip_before
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)
from tuned_models import make_allocation, mixed_allocation, seeded, tune

from sensitune.allocation import allocate
from sensitune.errors import ModelError
from sensitune.sensitivity import estimate_sensitivity
from sensitune.sites import find_sites, outline_model
from sensitune.tuner import SptConfig

# PEFT 0.21.2 asks transformers 5 for a property that it renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 50}
IDS = torch.randint(3, 50, (4, 7), generator=torch.Generator().manual_seed(0))
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Box(nn.Module):
    """A layer of its own behind one that others may hold too."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.fc, self.own, self.norm = shared, nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.gelu(self.own(self.fc(self.norm(x))))


class Boxes(nn.Module):
    """Boxes and a head."""

    def __init__(self, *boxes: nn.Module) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(boxes), nn.Linear(8, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def shared_layer() -> nn.Module:
    shared = nn.Linear(8, 8)
    return Boxes(Box(shared), Box(shared), Box(nn.Linear(8, 8)))


def shared_norm() -> nn.Module:
    first, second = Box(nn.Linear(8, 8)), Box(nn.Linear(8, 8))
    second.norm = first.norm
    return Boxes(first, second)


def shared_block() -> nn.Module:
    return Boxes(*[Box(nn.Linear(8, 8))] * 3)


def tied_weight() -> nn.Module:
    first, second = Box(nn.Linear(8, 8)), Box(nn.Linear(8, 8))
    second.fc.weight = first.fc.weight
    return Boxes(first, second)


# Kind -> (how to build it, what it eats, parameters that must not be offered)
MODELS: dict[str, tuple[Callable[[], nn.Module], Inputs, set[str]]] = {
    "a shared layer": (shared_layer, X, set()),
    "a shared norm": (shared_norm, X, set()),
    "a shared block": (shared_block, X, set()),
    "a tied weight": (tied_weight, X, {"blocks.0.fc.weight", "blocks.1.fc.weight"}),
    "bert": (
        lambda: BertForMaskedLM(BertConfig(**SIZES)), {"input_ids": IDS},
        {"cls.predictions.bias", "cls.predictions.decoder.bias", "bert.embeddings.word_embeddings.weight"},
    ),
    "roberta": (
        lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
        {"input_ids": IDS}, {"lm_head.bias", "lm_head.decoder.bias"},
    ),
    "albert": (
        lambda: AlbertForMaskedLM(AlbertConfig(**SIZES, embedding_size=8)), {"input_ids": IDS}, {"predictions.bias"},
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16)),
        {"input_ids": IDS}, {"transformer.wte.weight", "lm_head.weight"},
    ),
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(d_model=16, num_layers=2, num_heads=2, d_kv=8, d_ff=24, vocab_size=50, decoder_start_token_id=0)
        ),
        {"input_ids": IDS, "decoder_input_ids": IDS}, {"shared.weight", "lm_head.weight"},
    ),
}  # fmt: skip


def build(kind: str) -> nn.Module:
    return seeded(MODELS[kind][0], noise=0.1, dtype=torch.float64)


@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_offered_is_taken_and_exact_at_every_place(kind: str, turn: int, tmp_path: Path) -> None:
    _, inputs, unwanted = MODELS[kind]
    base = build(kind)
    allocation = mixed_allocation(base, turn=turn)
    assert not unwanted & {site.parameter for site in allocation.outline.sites}
    plain = output_of(base, inputs)
    tuned = tune(build(kind), allocation)
    assert not torch.allclose(output_of(tuned, inputs), plain)
    assert_unmerging_restores(tuned, inputs)
    assert_reload_equals(tuned, build(kind), tmp_path, inputs)
    assert_merged_equals_unmerged(tuned, inputs)
    assert_unloading_restores(tune(build(kind), allocation), base, trained="head")


def test_a_shared_layer_is_one_site_and_trains_with_the_gradient_of_all_its_places() -> None:
    base, labels = build("a shared layer"), torch.tensor([0, 1, 2, 0, 1, 2])
    assert [site.id for site in find_sites(base) if "fc.weight" in site.id] == [
        "blocks.0.fc.weight",
        "blocks.2.fc.weight",
    ]
    allocation = make_allocation(outline_model(base), sparse={"blocks.0.fc.weight": torch.arange(64)})
    tuned = tune(build("a shared layer"), allocation, init_weights=True)
    F.cross_entropy(tuned(X), labels).backward()
    F.cross_entropy(base(X), labels).backward()
    found = tuned.base_model.site_parameters()["blocks.0.fc.weight"]["sparse"].grad
    torch.testing.assert_close(found.view(8, 8), base.blocks[0].fc.weight.grad)


def test_a_shared_layer_can_be_left_out_by_any_of_its_names() -> None:
    model = build("a shared layer")
    for name in ("blocks.0.fc.*", "blocks.1.fc.*"):
        outline = outline_model(model, exclude=[name])
        assert not [site.id for site in outline.sites if site.id.startswith(("blocks.0.fc", "blocks.1.fc"))]
        assert outline.frozen["blocks.0.fc.weight"] == "excluded by `exclude`"


def test_a_file_that_names_a_shared_layer_twice_is_read(tmp_path: Path) -> None:
    skip_before("peft", "0.20", "its own files name a shared layer twice")
    kind = "a shared layer"
    tuned = tune(build(kind), mixed_allocation(build(kind)))
    tuned.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    assert not [name for name in tensors if ".blocks.1.fc." in name]
    again = {
        name.replace("blocks.0", "blocks.1"): tensor.clone() for name, tensor in tensors.items() if "0.fc." in name
    }
    save_file(tensors | again, file)
    loaded = PeftModel.from_pretrained(build(kind), tmp_path).eval()
    torch.testing.assert_close(output_of(loaded, X), output_of(tuned, X))


def test_a_refused_adapter_leaves_a_shared_layer_as_it_was() -> None:
    model = build("a shared layer")
    model.blocks[2].fc = nn.ModuleDict({"inner": nn.Linear(8, 8)})
    layer = model.blocks[0].fc
    with untouched(model), pytest.raises(ModelError, match=r"`blocks.2.fc` \(ModuleDict\) has no weight"):
        get_peft_model(model, SptConfig(target_modules=["fc"], r=2))
    assert model.blocks[0].fc is model.blocks[1].fc is layer


def test_a_default_allocation_of_a_tied_model_never_holds_the_tied_parameter() -> None:
    model = build("bert")
    allocation = allocate(estimate_sensitivity(model, [{"input_ids": IDS, "labels": IDS}]), budget=600, rank=2)
    assert "cls.predictions.bias" not in {
        allocation.site(name).parameter for name in (*allocation.vectors, *allocation.sparse)
    }
    tuned = tune(model, allocation)
    assert_merged_equals_unmerged(tuned, {"input_ids": IDS})


def test_a_tied_target_is_refused_without_an_allocation_too() -> None:
    model = build("a tied weight")
    before = state_of(model)
    with untouched(model), pytest.raises(ModelError, match=r"`blocks.0.fc.weight` is tied to `blocks.1.fc.weight`"):
        get_peft_model(model, SptConfig(target_modules=["own", "fc"], r=2))
    assert before.keys() == state_of(model).keys()
