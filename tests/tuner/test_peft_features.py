"""What users of PEFT do with an adapter works with ours, or says clearly why not."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from model_properties import (
    assert_merged_equals_unmerged,
    assert_same_state,
    assert_unloading_restores,
    assert_unmerging_restores,
    state_of,
    untouched,
)
from newer import skip_before
from packaging.version import Version
from peft import PeftModel, get_layer_status, get_model_status, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.integrations.peft import MIN_PEFT_VERSION
from tuned_models import add, count_trained, gradients_of, random_allocation, seeded, trained, tune

from sensitune.errors import ArgumentError, MergeError, ModelError
from sensitune.tuner import SptConfig

pytestmark = [
    # PEFT 0.21.2 asks transformers 5 for a property that it renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT before 0.21 looks for the configuration of a model without a name, and says that there is none.
    pytest.mark.filterwarnings("ignore:Could not find a config file in  - will assume:UserWarning"),
]

RANDOM = {"init_weights": False}
FORMS = {
    "sparse": {"r": 0, "num_sparse": 5},
    "lora": {"r": 2},
    "adapter": {"r": 2, "structured_type": "adapter"},
}


class Network(nn.Module):
    """Linear layers, a norm, a grouped convolution and a parameter of the root's own."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 8))
        self.conv = nn.Conv1d(4, 6, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(8)
        self.fc1 = nn.Linear(8, 10)
        self.fc2 = nn.Linear(10, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.conv(x.new_ones(1, 4, 8)).mean(1) + self.token
        return self.head(x + self.fc2(F.gelu(self.fc1(self.norm(x)))))


def network(dtype: torch.dtype = torch.float32) -> Network:
    return seeded(Network, dtype=dtype)


X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
TARGETS = ["fc1", "fc2", "norm", "conv"]


def tuned_network(dtype: torch.dtype = torch.float32, **options: Any) -> PeftModel:
    base = {"target_modules": TARGETS, "r": 2, "rank_pattern": {"fc2": 0}, "num_sparse": 5} | RANDOM
    config = SptConfig(**(base | options))
    if config.r and options.get("structured_type") == "adapter" and "target_modules" not in options:
        config.target_modules = {"fc1", "fc2"}
    elif config.r and "target_modules" not in options:
        config.rank_pattern = {"norm": 0} | dict(config.rank_pattern)
    return get_peft_model(network(dtype), config).eval()


# -- weighted sums ----------------------------------------------------------------------------------------------------


def three_adapters() -> PeftModel:
    """Adapters that overlap in every way: LoRA on LoRA, sparse on sparse, sparse on LoRA, whole on sparse."""
    tuned = tuned_network(torch.float64, modules_to_save=["head"])
    tuned.add_adapter("sparse", SptConfig(target_modules=TARGETS, r=0, num_sparse=5, **RANDOM))
    tuned.add_adapter(
        "wide", SptConfig(target_modules=TARGETS, r=4, rank_pattern={"fc2": 0}, num_sparse=9, modules_to_save=["head"])
    )
    for parameter in tuned.base_model.model.head.modules_to_save.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    tuned.add_adapter("fifth", SptConfig(target_modules=["norm", "fc2"], r=0, num_sparse=70, **RANDOM))
    return tuned


def test_a_weighted_sum_changes_every_weight_by_the_weighted_sum_of_the_changes() -> None:
    tuned = three_adapters()
    weights = {"default": 0.5, "sparse": -2.0, "wide": 1.5, "fifth": 0.25}
    expected: dict[str, torch.Tensor] = {}
    base = state_of(tuned.base_model.model)
    plain = network(torch.float64).state_dict()
    for name, weight in weights.items():
        merged = copy.deepcopy(tuned)
        merged.set_adapter(name)
        for key, value in merged.merge_and_unload().state_dict().items():
            expected[key] = expected.get(key, plain[key]) + weight * (value - plain[key])
    tuned.add_weighted_adapter(list(weights), list(weights.values()), "sum")
    after = state_of(tuned.base_model.model)
    assert_same_state(base, {key: value for key, value in after.items() if ".sum." not in key})
    tuned.set_adapter("sum")
    combined = assert_merged_equals_unmerged(tuned, X.double())
    torch.testing.assert_close(combined.state_dict(), expected)


def test_a_weighted_sum_unites_sparse_sets_and_adds_ranks() -> None:
    tuned = three_adapters()
    tuned.add_weighted_adapter(["default", "wide"], [1.0, 1.0], "sum")
    sites = {adapter: tuned.base_model.site_parameters(adapter) for adapter in ("default", "wide", "sum")}
    assert sites["sum"]["fc1.weight"]["down"].shape[0] == 2 + 4
    entries = {adapter: set(tuned.base_model.model.fc2.indices_of(adapter, "weight").tolist()) for adapter in sites}
    assert entries["sum"] == entries["default"] | entries["wide"]


def test_a_weighted_sum_is_saved_and_loaded_like_any_adapter(tmp_path: Path) -> None:
    tuned = three_adapters()
    tuned.add_weighted_adapter(["default", "sparse", "fifth"], [1.0, 0.5, 2.0], "sum")
    tuned.set_adapter("sum")
    tuned.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(network(torch.float64), tmp_path / "sum").double().eval()
    torch.testing.assert_close(loaded(X.double()), tuned(X.double()))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((["default", "absent"], [1.0, 1.0], "sum"), "`adapters` must be among: default.* Got 'absent'"),
        (([], [], "sum"), "Got none"),
        ((["default"], [1.0, 2.0], "sum"), "one weight for each of the 1 different adapters. Got 2 for 1"),
        ((["default"], [1.0], "sparse"), "There is an adapter 'sparse' already"),
        ((["default"], [1.0], "sum", "svd"), '`combination_type` must be "linear" or "cat". Got \'svd\''),
    ],
)
def test_a_weighted_sum_that_makes_no_sense_is_refused(arguments: tuple[Any, ...], match: str) -> None:
    tuned = tuned_network()
    tuned.add_adapter("sparse", SptConfig(target_modules=["fc1"], r=0))
    with untouched(tuned), pytest.raises(ArgumentError, match=match):
        tuned.add_weighted_adapter(*arguments)


def test_a_weighted_sum_of_adapter_modules_is_refused() -> None:
    tuned = tuned_network(structured_type="adapter")
    with untouched(tuned), pytest.raises(MergeError, match="is not linear and has no weighted sum"):
        tuned.add_weighted_adapter(["default"], [1.0], "sum")


# -- merging, exactly -------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), half=st.booleans(), adapters=st.integers(1, 3))
def test_unmerging_restores_every_weight_bit_for_bit_whatever_the_allocation(
    seed: int, half: bool, adapters: int
) -> None:
    dtype = torch.bfloat16 if half else torch.float32
    tuned = tune(network(dtype), random_allocation(network(), seed))
    names = ["default", "second", "third"][:adapters]
    for number, name in enumerate(names[1:], 1):
        add(tuned, random_allocation(network(), seed + number), name)
    assert_unmerging_restores(tuned, adapters=names)
    assert_unloading_restores(tuned, network(dtype))


def test_disabling_while_merged_gives_the_base_output() -> None:
    tuned = tuned_network()
    expected = network()(X)
    tuned.merge_adapter()
    with tuned.disable_adapter():
        assert torch.equal(tuned(X), expected)


def test_merging_for_good_keeps_no_copy_of_a_weight() -> None:
    tuned = tuned_network()
    layers = [layer for _, layer in tuned.base_model._layers()]
    tuned.merge_and_unload()
    assert not any(originals for layer in layers for originals in layer._originals.values())


# -- precision, memory, compilation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_a_half_precision_base_runs_and_trains(form: str, dtype: torch.dtype, autocast_adapter_dtype: bool) -> None:
    config = SptConfig(target_modules=["fc1", "fc2"], **FORMS[form], **RANDOM)
    tuned = get_peft_model(network(dtype), config, autocast_adapter_dtype=autocast_adapter_dtype)
    output = tuned(X.to(dtype))
    wanted = torch.float32 if autocast_adapter_dtype else dtype
    assert output.dtype == dtype
    assert {parameter.dtype for parameter in trained(tuned).values()} == {wanted}
    gradients = gradients_of(tuned, lambda: tuned(X.to(dtype)).float().square().sum())
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    full = get_peft_model(network(), SptConfig(target_modules=["fc1", "fc2"], **FORMS[form], **RANDOM))
    full.load_state_dict({name: value.float() for name, value in tuned.state_dict().items()}, strict=False)
    torch.testing.assert_close(output.float(), full(X), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_gives_nearly_the_same_gradients(form: str) -> None:
    tuned = tuned_network(target_modules=["fc1", "fc2"], rank_pattern={}, **FORMS[form])

    def gradients(enabled: bool) -> dict[str, torch.Tensor]:
        def loss() -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                return tuned(X).float().square().sum()

        return gradients_of(tuned, loss)

    half, full = gradients(True), gradients(False)
    for name, gradient in half.items():
        assert gradient.dtype == torch.float32
        assert (gradient - full[name]).norm() < 0.1 * full[name].norm() + 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_a_convolution_and_a_norm_compile_into_one_graph(training: bool) -> None:
    skip_before("torch", "2.7", "it cannot trace PEFT's context manager")
    tuned = tuned_network().train(training)  # the network itself has no dropout
    expected = copy.deepcopy(tuned)(X)
    compiled = torch.compile(tuned, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), expected)


def test_an_instance_of_a_half_merged_pickle_is_complete() -> None:
    tuned = tuned_network()
    tuned.merge_adapter()
    twin = pickle.loads(pickle.dumps(tuned))
    twin.unmerge_adapter()
    tuned.unmerge_adapter()
    assert_same_state(tuned, twin)


# -- looking at it ----------------------------------------------------------------------------------------------------


def test_the_status_of_model_and_layers_is_regular() -> None:
    tuned = tuned_network()
    tuned.add_adapter("other", SptConfig(target_modules=["fc1"], r=0))
    status = get_model_status(tuned)
    assert (status.peft_types, status.enabled, status.active_adapters) == (
        {"default": "SPT", "other": "SPT"},
        True,
        ["default"],
    )
    assert status.available_adapters == ["default", "other"]
    assert status.merged_adapters == []
    assert status.trainable_params == count_trained(tuned)
    assert {layer.name for layer in get_layer_status(tuned)} >= {"model.fc1", "model.fc2", "model.conv"}
    tuned.merge_adapter()
    assert get_model_status(tuned).merged_adapters == ["default"]
    with tuned.disable_adapter():
        assert get_model_status(tuned).enabled is False


def test_exclude_modules_leaves_modules_out() -> None:
    tuned = tuned_network(target_modules=r".*fc\d", exclude_modules=["fc2"], rank_pattern={})
    assert tuned.targeted_module_names == ["fc1"]


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_a_list_of_modules_is_a_set_and_is_one_again_after_saving(tmp_path: Path, field: str) -> None:
    """As PEFT's own test of its configurations, `test_save_pretrained_with_target_modules`."""
    config = SptConfig(**{field: ["a", "list", "a"]})
    assert getattr(config, field) == {"a", "list"}
    config.save_pretrained(tmp_path)
    loaded = SptConfig.from_pretrained(tmp_path)
    assert getattr(loaded, field) == {"a", "list"}
    assert loaded.to_dict() == config.to_dict()


def test_a_regular_expression_of_modules_stays_one(tmp_path: Path) -> None:
    SptConfig(target_modules=r".*fc\d").save_pretrained(tmp_path)
    assert SptConfig.from_pretrained(tmp_path).target_modules == r".*fc\d"


# -- what is closed to us ---------------------------------------------------------------------------------------------


def test_what_peft_offers_to_its_own_methods_only_is_refused_clearly(tmp_path: Path) -> None:
    tuned = tuned_network()
    tuned.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but SPT was passed"):
        hotswap_adapter(tuned, str(tmp_path), adapter_name="default")
    with pytest.raises(ValueError, match="'SPT' is not compatible with the `PeftMixedModel`"):
        get_peft_model(network(), SptConfig(target_modules=["fc1"]), mixed=True)
    with pytest.raises(ValueError, match="cannot apply different adapters within one batch"):
        tuned(X, adapter_names=["default"] * len(X))


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT warns too, but does not refuse
def test_a_module_that_carries_another_methods_adapter_is_refused_and_the_model_is_left_alone() -> None:
    base = get_peft_model(network(), peft.LoraConfig(target_modules=["fc2"])).base_model.model
    with untouched(base), pytest.raises(ModelError, match="already carries an adapter of another method"):
        get_peft_model(base, SptConfig(target_modules=["fc1", "fc2"], r=2))


# -- layers that are never called -------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Reads the weight of one of its layers instead of calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.called = nn.Linear(4, 4)
        self.read = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.called(x) @ self.read.base_layer.weight if hasattr(self.read, "base_layer") else x


@pytest.mark.parametrize("through_peft", [True, False])
def test_a_layer_that_the_first_training_forward_never_called_is_named(through_peft: bool) -> None:
    tuned = get_peft_model(Reader(), SptConfig(target_modules=["called", "read"], r=2))
    model = tuned if through_peft else tuned.base_model.model
    tuned.eval()
    model(torch.ones(1, 4))  # only training counts
    tuned.train()
    with pytest.raises(ModelError, match="`read` is tuned, but the first training forward never called it"):
        model(torch.ones(1, 4))


def test_the_search_for_uncalled_layers_leaves_no_hook_behind() -> None:
    tuned = tuned_network().train()
    tuned(X)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tuned.modules())


def test_a_forward_that_fails_does_not_end_the_search() -> None:
    tuned = get_peft_model(Reader(), SptConfig(target_modules=["called", "read"], r=2)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        tuned(torch.ones(1, 3))
    with pytest.raises(ModelError, match="never called"):
        tuned(torch.ones(1, 4))


def test_a_model_that_skips_layers_on_purpose_can_say_so() -> None:
    config = SptConfig(target_modules=["called", "read"], r=2, check_calls=False)
    assert get_peft_model(Reader(), config).train()(torch.ones(1, 4)).shape == (1, 4)


def test_a_copied_and_an_unloaded_model_forget_the_search_or_repeat_it() -> None:
    tuned = get_peft_model(Reader(), SptConfig(target_modules=["called", "read"], r=2)).train()
    with pytest.raises(ModelError, match="never called"):
        copy.deepcopy(tuned)(torch.ones(1, 4))
    with pytest.raises(ModelError, match="never called"):
        pickle.loads(pickle.dumps(tuned))(torch.ones(1, 4))
    assert tuned.unload()(torch.ones(1, 4)).shape == (1, 4)


# -- transformers and the hub -----------------------------------------------------------------------------------------


def tiny_bert() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=32, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    return seeded(lambda: BertForSequenceClassification(config))


def tiny_vit() -> ViTForImageClassification:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    return seeded(lambda: ViTForImageClassification(config))


TOKENS = torch.randint(0, 32, (4, 6), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TRANSFORMERS = {"bert": (tiny_bert, {"input_ids": TOKENS}), "vit": (tiny_vit, {"pixel_values": IMAGES})}


@pytest.mark.skipif(
    Version(peft.__version__) < max(Version("0.20"), Version(MIN_PEFT_VERSION)),
    reason="this release of transformers refuses this release of PEFT",
)
@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("from_allocation", [True, False])
def test_transformers_adds_saves_and_loads_an_adapter(tmp_path: Path, name: str, from_allocation: bool) -> None:
    build, inputs = TRANSFORMERS[name]
    model = build()
    if from_allocation:
        allocation = random_allocation(model, 2)
        config = SptConfig.from_allocation(allocation, modules_to_save=None, **RANDOM)
    else:
        query, value = ("query", "value") if name == "bert" else ("q_proj", "v_proj")
        options = {"r": 2, "rank_pattern": {query: 0}, "num_sparse": 3}
        config = SptConfig(target_modules=[query, value], **options, **RANDOM)
    plain = model(**inputs).logits
    model.add_adapter(config, adapter_name="mine")
    changed = model.eval()(**inputs).logits
    assert not torch.allclose(changed, plain)
    model.save_pretrained(tmp_path)
    loaded = build()
    loaded.load_adapter(str(tmp_path), adapter_name="theirs")
    assert torch.equal(loaded.eval()(**inputs).logits, changed)
    loaded.disable_adapters()
    assert torch.equal(loaded(**inputs).logits, plain)


def test_the_trainer_resumes_from_a_checkpoint_with_the_same_result(tmp_path: Path) -> None:
    rows = [{"input_ids": TOKENS[i % 4], "labels": torch.tensor(i % 3)} for i in range(8)]

    def trained(folder: Path, *, stop: int | None, resume: bool) -> PeftModel:
        torch.manual_seed(0)
        base = tiny_bert()
        allocation = random_allocation(base, 2)
        tuned = get_peft_model(base, SptConfig.from_allocation(allocation, dropout=0.0, drop_path=0.0))
        arguments = TrainingArguments(
            output_dir=str(folder), max_steps=stop or 4, save_steps=2, per_device_train_batch_size=2, report_to=[],
            use_cpu=True, learning_rate=0.1, lr_scheduler_type="constant", disable_tqdm=True, seed=0,
        )  # fmt: skip
        Trainer(tuned, arguments, train_dataset=rows).train(resume_from_checkpoint=resume)
        return tuned

    whole = trained(tmp_path / "whole", stop=None, resume=False)
    trained(tmp_path / "parts", stop=2, resume=False)
    resumed = trained(tmp_path / "parts", stop=4, resume=True)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)
    checkpoint = PeftModel.from_pretrained(tiny_bert(), tmp_path / "whole" / "checkpoint-4").eval()
    torch.testing.assert_close(checkpoint(TOKENS).logits, whole.eval()(TOKENS).logits)


def test_an_adapter_goes_to_a_hub_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is a folder: an upload copies into it, a download returns the path inside it."""
    skip_before("transformers", "5.0", "its upload has other parts, which the stand-in does not replace")
    from transformers.utils import hub

    def push(self: Any, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> None:
        shutil.copytree(working_dir, tmp_path / "hub" / repo_id)

    api = SimpleNamespace(create_repo=lambda repo_id, **kwargs: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(hub, "hf_api", lambda: api)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *args, **kwargs: ModelCard("# tuned"))
    monkeypatch.setattr(hub.PushToHubMixin, "_upload_modified_files", push)
    tuned = tune(tiny_bert(), random_allocation(tiny_bert(), 2))
    tuned.push_to_hub("me/tuned")
    folder = tmp_path / "hub" / "me" / "tuned"
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    monkeypatch.chdir(tmp_path / "hub")
    pulled = PeftModel.from_pretrained(tiny_bert(), "me/tuned").eval()
    assert torch.equal(pulled(TOKENS).logits, tuned(TOKENS).logits)
