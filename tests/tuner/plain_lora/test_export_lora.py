"""An exported adapter does what the adapter does, in PEFT alone; or it is refused by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_properties import output_of, state_of, untouched
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from scored_models import random_sensitivity
from small_language_models import tiny_gpt2, tiny_llama
from torch import nn
from transformers import PreTrainedModel
from tuned_models import IMAGES, add, make_allocation, mixed_allocation, seeded, tiny_vit, tune

from sensitune import SptConfig, allocate, export_lora, outline_model
from sensitune.allocation import Allocation
from sensitune.errors import ArgumentError, ExportError, ModelError
from sensitune.sites import Site

# PEFT 0.21.2 asks transformers 5 for a property that it renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
WORDS = torch.tensor([[3, 4, 5], [6, 7, 8]])
EXACT = {"rtol": 0.0, "atol": 1e-10}


def convolutions() -> nn.Module:
    def layers() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 6, 2, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(6, 5, 1, dilation=3),
            nn.Conv2d(5, 5, 3, padding="valid", padding_mode="reflect"),
            nn.Flatten(),
            nn.Linear(5 * 7 * 7, 3),
        )

    return seeded(layers, noise=0.1)


MODELS: Mapping[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "vit": (tiny_vit, IMAGES),
    "llama": (tiny_llama, WORDS),
    "gpt2": (tiny_gpt2, WORDS),
    "convolutions": (convolutions, IMAGES),
}


def weights_of(model: nn.Module) -> list[Site]:
    """Sites that a LoRA can stand for: weights of linear layers and convolutions, slices too."""
    modules = dict(model.named_modules())
    kinds = (nn.Linear, nn.Conv2d)
    return [
        site
        for site in outline_model(model).sites
        if site.name == "weight" and (site.transposed or isinstance(modules[site.module], kinds))
    ]


@st.composite
def servable_allocations(draw: st.DrawFn, name: str) -> Allocation:
    """LoRAs of any rank and single values anywhere, in any mixture, on what a LoRA can stand for."""
    model = MODELS[name][0]()
    modules, sparse = {}, {}
    for site in weights_of(model):
        way = draw(st.sampled_from(["frozen", "lora", "sparse", "columns", "rows"]))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
        if way == "lora" and site.kind == "matrix":
            modules[site.id] = draw(st.integers(1, 4))
        elif way in {"columns", "rows"}:
            chosen = torch.zeros(site.shape, dtype=torch.bool)
            dim = 1 if way == "columns" else 0
            chosen.index_fill_(dim, torch.randint(site.shape[dim], (2,), generator=generator), True)
            sparse[site.id] = chosen.flatten().nonzero()[:, 0]
        elif way == "sparse":
            count = draw(st.integers(1, min(6, site.numel)))
            sparse[site.id] = torch.randperm(site.numel, generator=generator)[:count].sort().values
    if not modules and not sparse:
        modules[next(site.id for site in weights_of(model) if site.kind == "matrix")] = 1
    allocation = make_allocation(outline_model(model), modules=modules, sparse=sparse)
    return replace(allocation, always_trained=())


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, deadline=None)
@given(data=st.data(), uniform_rank=st.booleans())
def test_the_exported_adapter_gives_the_same_outputs_merged_or_not(
    name: str, data: st.DataObject, uniform_rank: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    make, inputs = MODELS[name]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    allocation = data.draw(servable_allocations(name))
    tuned = tune(make().double(), allocation)
    folder = tmp_path_factory.mktemp("export")
    export = export_lora(tuned, folder, uniform_rank=uniform_rank)
    plain = PeftModel.from_pretrained(make().double(), folder).eval()
    with torch.no_grad():
        expected = output_of(tuned, inputs)
        torch.testing.assert_close(output_of(plain, inputs), expected, **EXACT)
        assert not torch.equal(expected, output_of(make().double(), inputs))
        torch.testing.assert_close(output_of(plain.merge_and_unload(), inputs), expected, **EXACT)
    assert dict(export.dropped) == {}
    assert set(export.ranks) == {allocation.site(site).module for site in (*allocation.structured, *allocation.sparse)}
    assert (len(set(export.ranks.values())) == 1) >= uniform_rank


QKV = "blocks.1.attn.qkv.weight"


def tuned_and_exported(
    folder: Path, *, modules: Mapping[str, int] | None = None, sparse: Mapping[str, Any] | None = None, **options: Any
) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    """A tuned vision transformer, and the tensors of its exported LoRAs without PEFT's prefix."""
    indices = {site: torch.tensor(found) for site, found in (sparse or {}).items()}
    allocation = replace(make_allocation(outline_model(tiny_vit()), modules=modules, sparse=indices), always_trained=())
    tuned = tune(tiny_vit(), allocation)
    export_lora(tuned, folder, **options)
    found = load_file(folder / "adapter_model.safetensors")
    return tuned, {name.removeprefix("base_model.model."): value for name, value in found.items()}


def test_loras_on_slices_become_one_of_the_summed_rank(tmp_path: Path) -> None:
    tuned, found = tuned_and_exported(tmp_path / "lora", modules={f"{QKV}[q]": 2, f"{QKV}[v]": 3})
    roles = tuned.base_model.site_parameters()
    down, up = found["blocks.1.attn.qkv.lora_A.weight"], found["blocks.1.attn.qkv.lora_B.weight"]
    assert torch.equal(down, torch.cat([roles[f"{QKV}[q]"]["down"], roles[f"{QKV}[v]"]["down"]]))
    assert torch.equal(up[:12, :2], roles[f"{QKV}[q]"]["up"])
    assert torch.equal(up[24:, 2:], roles[f"{QKV}[v]"]["up"])
    assert not up[12:24].any()
    assert not up[:12, 2:].any()
    assert not up[24:, :2].any()


@pytest.mark.parametrize(
    ("flat", "rank", "values_in"),
    [
        ([3, 15, 27], 1, "lora_B"),  # one column of a [12, 12] matrix
        ([36, 38, 41, 47], 1, "lora_A"),  # one row
        ([0, 12, 13], 2, "lora_B"),
        ([0, 1, 2, 12, 24], 3, "lora_B"),
        (list(range(144)), 12, "lora_B"),
    ],
)
def test_single_values_are_a_lora_of_as_many_ranks_as_columns_or_rows_hold_them(
    flat: list[int], rank: int, values_in: str, tmp_path: Path
) -> None:
    tuned, found = tuned_and_exported(tmp_path / "lora", sparse={"blocks.0.attn.proj.weight": flat})
    values = tuned.base_model.site_parameters()["blocks.0.attn.proj.weight"]["sparse"].detach()
    down, up = (found[f"blocks.0.attn.proj.{role}.weight"] for role in ("lora_A", "lora_B"))
    assert (down.shape, up.shape) == ((rank, 12), (12, rank))
    change = torch.zeros(144).index_put((torch.tensor(flat),), values).view(12, 12)
    assert torch.equal(up @ down, change)
    other = down if values_in == "lora_B" else up
    assert set(other.unique().tolist()) <= {0.0, 1.0}


def test_a_lora_never_has_a_higher_rank_than_its_matrix(tmp_path: Path) -> None:
    everywhere = list(range(0, 144, 13))
    slices = {f"{QKV}[q]": 9}
    tuned, found = tuned_and_exported(tmp_path / "lora", modules=slices, sparse={f"{QKV}[k]": everywhere})
    assert found["blocks.1.attn.qkv.lora_A.weight"].shape == (12, 12)
    product = found["blocks.1.attn.qkv.lora_B.weight"] @ found["blocks.1.attn.qkv.lora_A.weight"]
    layer = tuned.base_model.model.blocks[1].attn.qkv
    torch.testing.assert_close(product, layer.get_delta_weight("default"))


def test_the_configuration_is_pefts_own_and_scales_by_one(tmp_path: Path) -> None:
    sparse = {"blocks.0.mlp.fc1.weight": [0, 1]}
    tuned_and_exported(tmp_path / "lora", modules={f"{QKV}[q]": 3, "blocks.0.attn.proj.weight": 2}, sparse=sparse)
    values = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert values.keys() == LoraConfig().to_dict().keys()
    assert (values["peft_type"], values["r"], values["lora_alpha"], values["lora_dropout"]) == ("LORA", 3, 3, 0.0)
    assert values["rank_pattern"] == values["alpha_pattern"] == {"blocks.0.attn.proj": 2, "blocks.0.mlp.fc1": 1}
    assert sorted(values["target_modules"]) == ["blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.1.attn.qkv"]
    assert "It does exactly what the SPT adapter does" in (tmp_path / "lora" / "README.md").read_text()


def test_one_rank_for_all_is_filled_up_with_zeros(tmp_path: Path) -> None:
    modules = {f"{QKV}[q]": 3, "blocks.0.attn.proj.weight": 2}
    _, found = tuned_and_exported(tmp_path / "lora", modules=modules, uniform_rank=True)
    values = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (values["r"], values["lora_alpha"], values["rank_pattern"], values["alpha_pattern"]) == (3, 3, {}, {})
    assert {value.shape[0] for name, value in found.items() if "lora_A" in name} == {3}
    assert not found["blocks.0.attn.proj.lora_A.weight"][2:].any()
    assert not found["blocks.0.attn.proj.lora_B.weight"][:, 2:].any()


def test_the_head_is_carried_over_bit_for_bit(tmp_path: Path) -> None:
    _, before = tuned_and_exported(tmp_path / "first", modules={f"{QKV}[q]": 1})
    tuned = tune(tiny_vit(), replace(make_allocation(outline_model(tiny_vit()), modules={f"{QKV}[q]": 1})))
    head = tuned.base_model.model.head.modules_to_save["default"]
    with torch.no_grad():
        head.weight.add_(1.0)
    export = export_lora(tuned, tmp_path / "lora", allow_dropping=True)
    after = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert export.saved_modules == ("head",)
    assert torch.equal(after["base_model.model.head.weight"], head.weight)
    assert torch.equal(after["base_model.model.head.bias"], before["head.bias"])
    assert torch.equal(loaded_head(tmp_path / "lora"), head.weight)


def loaded_head(folder: Path) -> torch.Tensor:
    return PeftModel.from_pretrained(tiny_vit(), folder).base_model.model.head.weight


def test_an_export_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    tuned = tune(tiny_vit(), mixed_allocation(tiny_vit()))
    with untouched(tuned):
        export_lora(tuned, tmp_path / "lora", allow_dropping=True)


def test_what_is_no_lora_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    tuned = tune(tiny_vit(), mixed_allocation(tiny_vit()))
    with pytest.raises(ExportError) as caught:
        export_lora(tuned, tmp_path / "lora")
    message = str(caught.value)
    assert re.search(r"No LoRA does what the adapter does in \d+ places \(not the weight of a linear layer: ", message)
    assert "`cls_token`" in message or "more" in message
    assert "`allocate(..., servable=True)` (`--allocation.servable`), which never selects such places" in message
    assert "`allow_dropping=True` (`--allow-dropping`)" in message
    assert not (tmp_path / "lora").exists()


def test_adapters_are_refused_by_name(tmp_path: Path) -> None:
    outline = outline_model(tiny_vit())
    modules = {"blocks.0.mlp.fc1.weight": 2}
    tuned = tune(
        tiny_vit(), replace(make_allocation(outline, modules=modules, structured="adapter"), always_trained=())
    )
    with pytest.raises(ExportError, match=re.escape("(an Adapter, which is not linear: `blocks.0.mlp.fc1.weight`)")):
        export_lora(tuned, tmp_path / "lora")
    with pytest.raises(ExportError, match="changes no matrix, so there is no LoRA to write"):
        export_lora(tuned, tmp_path / "lora", allow_dropping=True)


def test_what_is_left_out_is_said_and_the_rest_is_exact(tmp_path: Path) -> None:
    tuned = tune(tiny_vit(dtype=torch.float64), mixed_allocation(tiny_vit()))
    export = export_lora(tuned, tmp_path / "lora", allow_dropping=True)
    roles = tuned.base_model.site_parameters()
    sites = {site.id: site for site in outline_model(tiny_vit()).sites}
    assert set(export.dropped) == {site for site in roles if site not in sites or sites[site].kind != "matrix"}
    with torch.no_grad():
        for site in export.dropped:
            for value in roles[site].values():
                value.zero_()
        plain = PeftModel.from_pretrained(tiny_vit(dtype=torch.float64), tmp_path / "lora").eval()
        torch.testing.assert_close(plain(IMAGES.double()), tuned(IMAGES.double()), **EXACT)
    card = (tmp_path / "lora" / "README.md").read_text()
    assert all(f"`{site}`: not the weight of a linear layer" in card for site in export.dropped)


class Standardised(nn.Conv2d):
    """A convolution that is not what its class name says, as in timm's ResNet v2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Squared(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) ** 2


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "a convolution with groups"),
        (nn.Conv2d(4, 4, 3, dilation=2), "a convolution with dilation"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "a convolution with padding mode 'circular'"),
        (Standardised(4, 4, 3), "Standardised is a convolution of its own kind"),
        (Squared(4, 4), "Squared has a forward of its own"),
        (
            nn.MultiheadAttention(4, 2),
            "something computes with the weight without calling its layer, where PEFT's LoRA has",
        ),
        (nn.LayerNorm(4), "not the weight of a linear layer"),
    ],
    ids=["groups", "dilation", "padding", "conv subclass", "linear subclass", "attention", "norm"],
)
def test_a_layer_on_which_pefts_lora_does_something_else_is_refused(
    layer: nn.Module, reason: str, tmp_path: Path
) -> None:
    model = nn.Sequential(layer, nn.Linear(4, 2))
    name = "0.out_proj.weight" if isinstance(layer, nn.MultiheadAttention) else "0.weight"
    allocation = make_allocation(outline_model(model), sparse={name: torch.tensor([1, 2])})
    with pytest.raises(ExportError, match=rf"\({re.escape(reason)}[^:]*: `{name}`\)"):
        export_lora(tune(model, allocation), tmp_path / "lora")


@pytest.mark.parametrize("options", [{"r": 2}, {"r": 0, "num_sparse": 7}, {"r": 0, "num_sparse": 10**6}])
def test_an_adapter_without_an_allocation_is_exported(options: dict[str, int], tmp_path: Path) -> None:
    tuned = seeded(
        lambda: get_peft_model(tiny_vit(), SptConfig(target_modules=["qkv", "fc2"], init_weights=False, **options))
    )
    assert len(export_lora(tuned, tmp_path / "lora").ranks) == 6
    with torch.no_grad():
        plain = PeftModel.from_pretrained(tiny_vit(), tmp_path / "lora").eval()
        torch.testing.assert_close(plain(IMAGES), tuned(IMAGES), rtol=1e-4, atol=1e-4)


def test_a_layer_whose_weight_is_read_instead_of_called_is_refused(tmp_path: Path) -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=8, batch_first=True)
    tuned = tune(encoder, make_allocation(outline_model(encoder), modules={"linear1.weight": 2}))
    with pytest.raises(ExportError, match=r"\(something computes with the weight .*: `linear1.weight`\)"):
        export_lora(tuned, tmp_path / "lora")
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    tuned = tune(model, make_allocation(outline_model(model), modules={"0.weight": 1}))
    nn.functional.linear(torch.ones(1, 4), tuned.base_model.model[0].weight)
    with pytest.raises(ExportError, match=r"\(something computes with the weight .*: `0.weight`\)"):
        export_lora(tuned, tmp_path / "lora")


def test_a_layer_in_several_places_and_a_lora_on_a_forward_of_its_own_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    tuned = tune(model, make_allocation(outline_model(model), modules={"0.weight": 1}))
    model[1] = model[0]
    with pytest.raises(
        ExportError, match=r"\(a layer that stands in several places, of which PEFT tunes one: `0.weight`\)"
    ):
        export_lora(tuned, tmp_path / "lora")
    model = nn.Sequential(Squared(4, 4), nn.Linear(4, 2))
    tuned = tune(model, make_allocation(outline_model(model), modules={"0.weight": 1}))
    with pytest.raises(ExportError, match=r"\(Squared has a forward of its own: `0.weight`\)"):
        export_lora(tuned, tmp_path / "lora")


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # PEFT 0.18
def test_names_that_are_the_ends_of_others_are_matched_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    allocation = make_allocation(outline_model(model), modules={"0.weight": 2, "1.1.weight": 1})
    tuned = tune(seeded(lambda: model), allocation)
    export_lora(tuned, tmp_path / "lora")
    tuned.unload()
    plain = PeftModel.from_pretrained(model, tmp_path / "lora")
    layers = {name: each.r for name, each in plain.base_model.model.named_modules() if isinstance(each, LoraLayer)}
    assert layers == {"0": {"default": 2}, "1.1": {"default": 1}}


def test_a_head_whose_name_ends_another_modules_is_refused(tmp_path: Path) -> None:
    model = tiny_vit()
    model.blocks[0].overhead = nn.Linear(12, 12)
    allocation = replace(make_allocation(outline_model(model), modules={f"{QKV}[q]": 1}), always_trained=())
    with pytest.raises(ExportError, match=re.escape("PEFT cannot be told to save `head` alone: it takes")):
        export_lora(tune(model, allocation), tmp_path / "lora")


def test_one_of_several_adapters_is_exported(tmp_path: Path) -> None:
    outline = outline_model(tiny_vit())
    first = replace(make_allocation(outline, modules={f"{QKV}[q]": 1}), always_trained=())
    second = replace(make_allocation(outline, modules={"blocks.0.mlp.fc2.weight": 2}), always_trained=())
    tuned = tune(tiny_vit(), first)
    add(tuned, second)
    assert export_lora(tuned, tmp_path / "lora", adapter="other").ranks == {"blocks.0.mlp.fc2": 2}
    with pytest.raises(ModelError, match=r"There is no adapter 'third'. The model has: default, other."):
        export_lora(tuned, tmp_path / "lora", adapter="third")


def test_a_model_without_an_spt_adapter_is_refused(tmp_path: Path) -> None:
    plain = get_peft_model(tiny_vit(), LoraConfig(target_modules=["qkv"]))
    for model in (plain, tiny_vit()):
        with pytest.raises(ModelError, match="has no SPT adapter. Load or make one first"):
            export_lora(model, tmp_path / "lora")


@pytest.mark.parametrize("name", ["vit", "llama", "gpt2"])
@settings(max_examples=8, deadline=None)
@given(
    budget=st.integers(30, 900),
    structured=st.sampled_from(["lora", None]),
    rank=st.integers(2, 5),
    seed=st.integers(0, 5),
)
def test_what_is_allocated_to_be_served_is_never_refused(
    name: str, budget: int, structured: Any, rank: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    make, inputs = MODELS[name]
    sensitivity = random_sensitivity(make(), seed=seed)
    allocation = allocate(sensitivity, budget=budget, structured=structured, rank=rank, servable=True)
    assert allocation.trainable_params == budget
    assert allocation.always_trained == ()
    tuned = tune(make(), allocation)
    folder = tmp_path_factory.mktemp("export")
    assert not export_lora(tuned, folder).dropped
    plain = PeftModel.from_pretrained(make(), folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(output_of(plain, inputs), output_of(tuned, inputs), rtol=1e-4, atol=1e-5)


def test_adapters_cannot_be_allocated_to_be_served() -> None:
    with pytest.raises(ArgumentError, match=r"`servable` leaves no room for Adapters, which are not linear. Take"):
        allocate(random_sensitivity(tiny_vit()), budget=500, structured="adapter", servable=True)


WITHOUT_US = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sensitune":
            raise ImportError("there is no sensitune here")

sys.meta_path.insert(0, Nothing())
import torch
from peft import PeftModel
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from transformers import LlamaForCausalLM

def vit():
    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=12, depth=3, num_heads=2, num_classes=5, init_values=0.1
    )
    model.load_state_dict(load_file("vit/base.safetensors"))
    return model.eval()

def llama():
    return LlamaForCausalLM.from_pretrained("llama/base").eval()

def check(model, kind):
    given = load_file(kind + "/given.safetensors")
    found = model(given["inputs"])
    torch.testing.assert_close(getattr(found, "logits", found), given["outputs"], rtol=0, atol=1e-5)

with torch.no_grad():
    for kind, base in (("vit", vit), ("llama", llama)):
        tuned = PeftModel.from_pretrained(base(), kind + "/lora").eval()
        check(tuned, kind)
        check(tuned.merge_and_unload(), kind)
assert not any(name.partition(".")[0] == "sensitune" for name in sys.modules)
print("equal")
"""


def written(kind: str, folder: Path) -> tuple[Path, torch.Tensor]:
    """The exported adapter of a servable allocation beside its base, inputs and outputs."""
    make, inputs = MODELS[kind]
    folder.mkdir()
    base = make()
    if isinstance(base, PreTrainedModel):
        base.save_pretrained(folder / "base")
    else:
        save_file(state_of(base), folder / "base.safetensors")
    allocation = allocate(random_sensitivity(make()), budget=400, rank=2, servable=True)
    assert allocation.structured
    assert allocation.sparse
    tuned = tune(make(), allocation)
    export_lora(tuned, folder / "lora")
    with torch.no_grad():
        outputs = output_of(tuned, inputs)
    assert not torch.allclose(outputs, output_of(base, inputs), atol=1e-3)
    save_file({"inputs": inputs, "outputs": outputs}, folder / "given.safetensors")
    return folder / "lora", outputs


def test_peft_loads_and_merges_it_where_there_is_no_sensitune(tmp_path: Path) -> None:
    for kind in ("vit", "llama"):
        written(kind, tmp_path / kind)
    command = [sys.executable, "-I", "-c", WITHOUT_US]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


@pytest.mark.skipif(Version(peft.__version__) < Version("0.20"), reason="transformers requires peft >= 0.20")
def test_transformers_loads_it_by_itself(tmp_path: Path) -> None:
    folder, outputs = written("llama", tmp_path / "llama")
    model = tiny_llama()
    model.load_adapter(str(folder))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(WORDS).logits, outputs, rtol=0, atol=1e-5)
