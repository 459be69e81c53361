"""A tuned model behaves as a PEFT user expects: exact, reversible, portable."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import tuned_models
from dense_reference import assert_gradients_follow, write_dense
from model_properties import (
    assert_merged_equals_unmerged,
    assert_reload_equals,
    assert_unloading_restores,
    assert_unmerging_restores,
    untouched,
)
from newer import skip_before
from peft import get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from tuned_models import (
    IMAGES,
    LABELS,
    add,
    count_trained,
    gradients_of,
    make_allocation,
    mixed_allocation,
    tiny_vit,
    trained,
    tune,
    tuned_vit,
)

from sensitune.errors import AllocationMismatchError, ArgumentError, MergeError, ModelError
from sensitune.sites import outline_model
from sensitune.tuner import SptConfig


def base_output() -> torch.Tensor:
    with torch.no_grad():
        return tiny_vit()(IMAGES)


@pytest.mark.parametrize("structured", ["lora", "adapter"])
def test_the_model_trains_exactly_the_allocation_and_the_head(structured: str) -> None:
    allocation = mixed_allocation(tiny_vit(), structured)
    tuned = get_peft_model(tiny_vit(), SptConfig.from_allocation(allocation))
    assert count_trained(tuned) == allocation.trainable_params + allocation.head_params


def test_every_trained_parameter_gets_a_gradient() -> None:
    tuned = tuned_vit()
    assert gradients_of(tuned, lambda: F.cross_entropy(tuned(IMAGES), LABELS))
    assert all(parameter.grad is None for parameter in tuned.parameters() if not parameter.requires_grad)


def test_a_fresh_adapter_is_the_identity() -> None:
    tuned = get_peft_model(tiny_vit(), SptConfig.from_allocation(mixed_allocation(tiny_vit())))
    torch.testing.assert_close(tuned.eval()(IMAGES), base_output(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("turn", range(3))
def test_merged_equals_unmerged_in_float64(turn: int) -> None:
    base = tiny_vit(dtype=torch.float64)
    merged = assert_merged_equals_unmerged(tune(base, mixed_allocation(base, turn=turn)), IMAGES.double())
    assert type(merged) is VisionTransformer
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in tiny_vit().named_parameters()}


@pytest.mark.parametrize("turn", range(3))
def test_gradients_equal_those_of_a_plain_model_with_dense_deltas_in_float64(turn: int) -> None:
    base = tiny_vit(dtype=torch.float64)
    allocation = mixed_allocation(base, turn=turn)
    tuned, plain = tune(base, allocation), tiny_vit(dtype=torch.float64)
    write_dense(plain, tuned, allocation)
    for model in (tuned, plain):
        F.cross_entropy(model(IMAGES.double()), LABELS).backward()
    assert_gradients_follow(tuned, plain, allocation)
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(dict(merged.named_parameters()), dict(plain.named_parameters()))


def test_one_sgd_step_on_a_sparse_allocation_and_a_merge_give_the_papers_equation() -> None:
    """W' = W - lr · g · M (equation 6), and every scalar outside the mask stays bit-equal."""
    base = tiny_vit()
    outline = outline_model(base)
    generator = torch.Generator().manual_seed(0)
    sparse = {site.id: torch.randperm(site.numel, generator=generator)[:3].sort().values for site in outline.sites}
    allocation = make_allocation(outline, sparse=sparse)
    reference = tiny_vit()
    F.cross_entropy(reference(IMAGES), LABELS).backward()
    tuned = get_peft_model(base, SptConfig.from_allocation(allocation)).eval()
    F.cross_entropy(tuned(IMAGES), LABELS).backward()
    for parameter in tuned.parameters():
        if parameter.grad is not None:
            parameter.data.sub_(0.5 * parameter.grad)
    merged = tuned.merge_and_unload()
    for site in outline.sites:
        before = site.of(reference.get_parameter(site.parameter))
        after = site.of(merged.get_parameter(site.parameter)).detach()
        mask = torch.zeros(site.numel, dtype=torch.bool)
        mask[sparse[site.id]] = True
        gradient = site.of(reference.get_parameter(site.parameter).grad)
        stepped = before.detach() - 0.5 * gradient
        mask = mask.view(site.shape)
        torch.testing.assert_close(after[mask], stepped[mask], rtol=1e-4, atol=1e-6)
        assert torch.equal(after[~mask], before.detach()[~mask])


def test_disabling_gives_the_base_output_bit_for_bit() -> None:
    tuned = tuned_vit()
    with tuned.disable_adapter():
        assert torch.equal(tuned(IMAGES), base_output())
    assert not torch.equal(tuned(IMAGES), base_output())


def test_unload_returns_the_untouched_base() -> None:
    assert_unloading_restores(tuned_vit(), tiny_vit())


@pytest.mark.parametrize("safe_merge", [False, True])
def test_merging_and_unmerging_restores_every_weight_bit_for_bit(safe_merge: bool) -> None:
    assert_unmerging_restores(tuned_vit(), IMAGES, safe_merge=safe_merge, rtol=1e-4, atol=1e-5)


def test_two_merged_adapters_unmerge_bit_for_bit() -> None:
    tuned = tuned_vit(modules_to_save=None)
    add(tuned, mixed_allocation(tiny_vit(), turn=1), modules_to_save=None)
    assert_unmerging_restores(tuned, IMAGES, adapters=["default", "other"], rtol=1e-4, atol=1e-5)


def test_an_adapter_refuses_to_merge_and_nothing_changes() -> None:
    tuned = tuned_vit("adapter")
    for merge in (tuned.merge_adapter, tuned.merge_and_unload):
        with (
            untouched(tuned),
            pytest.raises(MergeError, match="has an Adapter, which is not linear and cannot be merged"),
        ):
            merge()
    assert torch.equal(tuned.unload()(IMAGES), base_output())


def test_a_safe_merge_that_refuses_leaves_every_weight_untouched() -> None:
    tuned = tuned_vit()
    last = list(tuned.base_model.site_parameters().values())[-1]
    next(iter(last.values())).data.fill_(float("nan"))
    message = "NaNs detected in the merged weights. The adapter default .* No weight was changed"
    for merge in (tuned.merge_adapter, tuned.merge_and_unload):
        with untouched(tuned), pytest.raises(MergeError, match=message):
            merge(safe_merge=True)


@pytest.mark.parametrize("structured", ["lora", "adapter"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saving_and_loading_gives_the_same_output(tmp_path: Path, structured: str, low_cpu_mem_usage: bool) -> None:
    tuned = tuned_vit(structured)
    assert_reload_equals(tuned, tiny_vit(), tmp_path, IMAGES, exact=True, low_cpu_mem_usage=low_cpu_mem_usage)


def test_a_fresh_process_loads_the_adapter(tmp_path: Path) -> None:
    tuned = tuned_vit()
    tuned.save_pretrained(tmp_path / "adapter")
    torch.save(tuned(IMAGES).detach(), tmp_path / "expected.pt")
    script = (
        "import sys, torch; sys.path.insert(0, sys.argv[2]); import sensitune; from peft import PeftModel\n"
        "from tuned_models import IMAGES, tiny_vit\n"
        "model = PeftModel.from_pretrained(tiny_vit(), sys.argv[1] + '/adapter').eval()\n"
        "assert torch.equal(model(IMAGES), torch.load(sys.argv[1] + '/expected.pt', weights_only=True))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(tuned_models.__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_copied_and_a_pickled_model_give_the_same_output_and_are_independent() -> None:
    tuned = tuned_vit()
    expected = tuned(IMAGES)
    for twin in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert torch.equal(twin(IMAGES), expected)
        for roles in twin.base_model.site_parameters().values():
            for parameter in roles.values():
                parameter.data.zero_()
        assert not torch.equal(twin(IMAGES), expected)
        assert torch.equal(tuned(IMAGES), expected)


def test_switching_and_several_active_adapters_add() -> None:
    images = IMAGES.double()
    tuned = tuned_vit(dtype=torch.float64, modules_to_save=None)
    add(tuned, mixed_allocation(tiny_vit(), turn=1), modules_to_save=None)
    first = tuned(images)
    tuned.set_adapter("other")
    assert not torch.allclose(tuned(images), first)
    tuned.set_adapter("default")
    assert torch.equal(tuned(images), first)
    assert_unmerging_restores(tuned, images, adapters=["default", "other"])


def test_a_second_adapter_does_not_change_what_is_trained() -> None:
    tuned = tuned_vit()
    before = count_trained(tuned)
    add(tuned, mixed_allocation(tiny_vit(), turn=1))
    assert count_trained(tuned) == before


def test_deleting_an_adapter_leaves_no_parameter_of_it() -> None:
    tuned = tuned_vit()
    add(tuned, mixed_allocation(tiny_vit(), turn=1))
    tuned.delete_adapter("other")
    assert not [name for name in tuned.state_dict() if "other" in name]
    assert list(tuned.peft_config) == ["default"]


def test_two_constructions_without_an_allocation_draw_different_entries_and_saving_keeps_them(tmp_path: Path) -> None:
    config = SptConfig(target_modules=["fc1"], r=0, num_sparse=7, init_weights=False)
    first, second = (get_peft_model(tiny_vit(), config).eval() for _ in range(2))
    key = next(name for name in first.state_dict() if "spt_indices" in name)
    assert not torch.equal(first.state_dict()[key], second.state_dict()[key])
    assert_reload_equals(first, tiny_vit(), tmp_path, IMAGES, exact=True)


def test_gradient_checkpointing_and_accumulation_do_not_change_the_gradients() -> None:
    tuned = tuned_vit()

    def gradients() -> dict[str, torch.Tensor]:
        return gradients_of(tuned, lambda: F.cross_entropy(tuned(IMAGES), LABELS))

    plain = gradients()
    tuned.base_model.model.set_grad_checkpointing(True)
    torch.testing.assert_close(gradients(), plain)
    tuned.zero_grad()
    for images, labels in zip(IMAGES.split(1), LABELS.split(1), strict=True):
        (F.cross_entropy(tuned(images), labels) / 4).backward()
    accumulated = {name: parameter.grad for name, parameter in trained(tuned).items()}
    torch.testing.assert_close(accumulated, plain, rtol=1e-4, atol=1e-5)


def test_forward_features_of_the_model_itself_sees_the_tuned_class_token() -> None:
    tuned = tuned_vit()
    inner = tuned.base_model.model
    with_adapter = inner.forward_features(IMAGES)
    with tuned.disable_adapter():
        without = inner.forward_features(IMAGES)
    assert not torch.allclose(with_adapter[:, 0], without[:, 0])


def test_a_compiled_model_gives_the_same_output_and_gradients_in_one_graph() -> None:
    skip_before("torch", "2.7", "it cannot trace PEFT's context manager")
    tuned = tuned_vit()
    plain = gradients_of(tuned, lambda: F.cross_entropy(tuned(IMAGES), LABELS))
    compiled = torch.compile(tuned, backend="aot_eager", fullgraph=True)
    ours = gradients_of(tuned, lambda: F.cross_entropy(compiled(IMAGES), LABELS))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled(IMAGES), tuned(IMAGES), rtol=1e-4, atol=1e-5)


def test_dropout_and_drop_path_act_in_training_only() -> None:
    tuned = tuned_vit(dropout=0.5, drop_path=0.5)
    expected = tuned(IMAGES)
    tuned.train()
    assert not torch.equal(tuned(IMAGES), tuned(IMAGES))
    assert torch.equal(tuned.eval()(IMAGES), expected)


def test_an_allocation_for_another_model_is_refused_and_the_model_is_left_alone() -> None:
    allocation = mixed_allocation(tiny_vit())
    for model, match in (
        (tiny_vit(width=16), r"has shape \[1, 1, 12\], but `cls_token`"),
        (tiny_vit(depth=1), "is not a parameter of VisionTransformer"),
    ):
        with untouched(model), pytest.raises(AllocationMismatchError, match=match):
            get_peft_model(model, SptConfig.from_allocation(allocation))


def test_bad_settings_name_the_setting() -> None:
    for options, match in (
        ({"r": -1}, "`r` must be a whole number of at least 0. Got -1"),
        ({"structured_type": "bitfit"}, "`structured_type` must be"),
        ({"num_sparse": 0}, "`num_sparse` must be a whole number of at least 1. Got 0"),
        ({"dropout": 1.0}, "`dropout` must be a number of at least 0 and below 1. Got 1.0"),
        ({"rank_pattern": {"fc1": 2.5}}, "`rank_pattern.fc1` must be a whole number of at least 0. Got 2.5"),
        ({"layers_pattern": "blocks"}, "`layers_pattern` needs `layers_to_transform`"),
    ):
        with pytest.raises(ArgumentError, match=match):
            SptConfig(**options)
    with pytest.raises(ArgumentError, match="`proj_adapter_input` must be"):
        SptConfig.from_allocation(mixed_allocation(tiny_vit()), proj_adapter_input="both")
    with pytest.raises(ModelError, match="There is no adapter 'other'"):
        tuned_vit().base_model.site_parameters("other")


def test_multi_head_attention_takes_sparse_entries_and_refuses_a_lora() -> None:
    def layer() -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    with pytest.raises(ModelError, match="MultiheadAttention reads the weight"):
        get_peft_model(layer(), SptConfig(target_modules=["out_proj"], r=2))
    tuned = get_peft_model(
        layer(), SptConfig(target_modules=["out_proj"], r=0, num_sparse=9, init_weights=False)
    ).eval()
    x = torch.randn(2, 3, 8)
    changed = tuned(x)
    with tuned.disable_adapter():
        assert not torch.allclose(changed, tuned(x))
    assert gradients_of(tuned, lambda: tuned(x).sum())


def test_a_layer_with_a_forward_of_its_own_keeps_what_it_notes_while_it_runs() -> None:
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x)

    base = Counting(4, 4)
    tuned = get_peft_model(nn.Sequential(base), SptConfig(target_modules=["0"], r=0, num_sparse=3, init_weights=False))
    x = torch.randn(2, 4)
    assert not torch.allclose(tuned(x), F.linear(x, base.weight, base.bias))
    assert base.calls == 1
    assert set(vars(base)) == {*vars(nn.Linear(4, 4)), "calls"}


def test_mixed_batches_are_refused() -> None:
    layer = tuned_vit().base_model.model.blocks[0].mlp.fc1
    with pytest.raises(ArgumentError, match="cannot apply different adapters within one batch"):
        layer(torch.randn(2, 12), adapter_names=["default", "other"])
