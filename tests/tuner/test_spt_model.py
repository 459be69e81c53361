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
from peft import PeftModel, get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sensitune.allocation import Allocation
from sensitune.errors import AllocationMismatchError, ArgumentError, MergeError, ModelError
from sensitune.sites import outline_model
from sensitune.tuner import SptConfig


def tiny_vit(seed: int = 0, **options: object) -> VisionTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VisionTransformer(
            img_size=16, patch_size=8, embed_dim=12, depth=3, num_heads=2, num_classes=5, init_values=0.1, **options
        )
        for parameter in model.parameters():  # nothing may hide behind a zero or a one
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def mixed_allocation(model: nn.Module, structured: str = "lora", seed: int = 0, rank: int = 2) -> Allocation:
    """Every kind of tuning on every kind of site, in turn."""
    outline = outline_model(model)
    generator = torch.Generator().manual_seed(seed)
    modules, vectors, sparse = [], [], {}
    for position, site in enumerate(outline.sites):
        turn = (position + seed) % 3
        if site.kind == "matrix" and turn == 0:
            modules.append(site.id)
        elif site.kind == "vector" and turn == 0:
            vectors.append(site.id)
        elif turn == 1:
            count = 1 + int(torch.randint(site.numel // 2, (), generator=generator))
            sparse[site.id] = torch.randperm(site.numel, generator=generator)[:count].sort().values
    return Allocation(
        outline=outline,
        structured=dict.fromkeys(modules, rank),
        vectors=tuple(vectors),
        sparse=sparse,
        structured_type=structured,
        always_trained=tuple(outline.always_trained),
    )


def tuned_vit(structured: str = "lora", seed: int = 0, **options: object) -> PeftModel:
    base = tiny_vit()
    config = SptConfig.from_allocation(mixed_allocation(base, structured, seed), init_weights=False, **options)
    return get_peft_model(base, config).eval()


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3])


def base_output() -> torch.Tensor:
    with torch.no_grad():
        return tiny_vit()(IMAGES)


def trained_counts(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("structured", ["lora", "adapter"])
def test_the_model_trains_exactly_the_allocation_and_the_head(structured: str) -> None:
    allocation = mixed_allocation(tiny_vit(), structured)
    tuned = get_peft_model(tiny_vit(), SptConfig.from_allocation(allocation))
    assert trained_counts(tuned) == allocation.trainable_params + allocation.head_params


def test_every_trained_parameter_gets_a_gradient() -> None:
    tuned = tuned_vit()
    F.cross_entropy(tuned(IMAGES), LABELS).backward()
    assert all(parameter.grad is not None for parameter in tuned.parameters() if parameter.requires_grad)
    assert all(parameter.grad is None for parameter in tuned.parameters() if not parameter.requires_grad)


def test_a_fresh_adapter_is_the_identity() -> None:
    tuned = get_peft_model(tiny_vit(), SptConfig.from_allocation(mixed_allocation(tiny_vit())))
    torch.testing.assert_close(tuned.eval()(IMAGES), base_output(), rtol=1e-5, atol=1e-5)


def test_merged_equals_unmerged_in_float64() -> None:
    tuned = tuned_vit().double()
    expected = tuned(IMAGES.double())
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(merged(IMAGES.double()), expected)
    assert type(merged) is VisionTransformer
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in tiny_vit().named_parameters()}


def test_gradients_equal_those_of_a_plain_model_with_dense_deltas_in_float64() -> None:
    tuned = tuned_vit().double()
    logits = tuned(IMAGES.double())
    F.cross_entropy(logits, LABELS).backward()
    sites = {site.id: site for site in outline_model(tiny_vit()).sites}
    merged = copy.deepcopy(tuned).merge_and_unload().requires_grad_(True)
    F.cross_entropy(merged(IMAGES.double()), LABELS).backward()
    for site_id, roles in tuned.base_model.site_parameters().items():
        parameter = merged.get_parameter(sites[site_id].parameter if site_id in sites else site_id)
        dense = parameter.grad if site_id not in sites else sites[site_id].of(parameter.grad)
        if "whole" in roles:
            torch.testing.assert_close(roles["whole"].grad, dense)
        elif "sparse" in roles:
            indices = mixed_allocation(tiny_vit()).sparse[site_id]
            torch.testing.assert_close(roles["sparse"].grad, dense.flatten()[indices])
        else:
            torch.testing.assert_close(roles["up"].grad, dense @ roles["down"].T)
            torch.testing.assert_close(roles["down"].grad, roles["up"].T @ dense)


def test_one_sgd_step_on_a_sparse_allocation_and_a_merge_give_the_papers_equation() -> None:
    """W' = W - lr · g · M (equation 6), and every scalar outside the mask stays bit-equal."""
    base = tiny_vit()
    outline = outline_model(base)
    generator = torch.Generator().manual_seed(0)
    sparse = {site.id: torch.randperm(site.numel, generator=generator)[:3].sort().values for site in outline.sites}
    allocation = Allocation(outline=outline, structured={}, vectors=(), sparse=sparse)
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
    unloaded = tuned_vit().unload()
    assert type(unloaded) is VisionTransformer
    assert all(torch.equal(value, tiny_vit().state_dict()[name]) for name, value in unloaded.state_dict().items())


@pytest.mark.parametrize("safe_merge", [False, True])
def test_merging_and_unmerging_restores_every_weight_bit_for_bit(safe_merge: bool) -> None:
    tuned = tuned_vit()
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    expected = tuned(IMAGES)
    tuned.merge_adapter(safe_merge=safe_merge)
    torch.testing.assert_close(tuned(IMAGES), expected, rtol=1e-4, atol=1e-5)
    tuned.unmerge_adapter()
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())
    assert torch.equal(tuned(IMAGES), expected)


def test_two_merged_adapters_unmerge_bit_for_bit() -> None:
    tuned = tuned_vit()
    tuned.add_adapter(
        "other",
        SptConfig.from_allocation(mixed_allocation(tiny_vit(), seed=1), init_weights=False, modules_to_save=None),
    )
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    tuned.base_model.merge_adapter(["default", "other"])
    tuned.base_model.unmerge_adapter()
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())


def test_an_adapter_refuses_to_merge_and_nothing_changes() -> None:
    tuned = tuned_vit("adapter")
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    for merge in (tuned.merge_adapter, tuned.merge_and_unload):
        with pytest.raises(MergeError, match="has an Adapter, which is not linear and cannot be merged"):
            merge()
        assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())
    assert torch.equal(tuned.unload()(IMAGES), base_output())


def test_a_safe_merge_that_refuses_leaves_every_weight_untouched() -> None:
    tuned = tuned_vit()
    last = list(tuned.base_model.site_parameters().values())[-1]
    next(iter(last.values())).data.fill_(float("nan"))
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    for merge in (tuned.merge_adapter, tuned.merge_and_unload):
        with pytest.raises(
            MergeError, match="NaNs detected in the merged weights. The adapter default .* No weight was changed"
        ):
            merge(safe_merge=True)
        after = tuned.state_dict()
        assert all(torch.equal(value, after[name]) or value.isnan().any() for name, value in before.items())


@pytest.mark.parametrize("structured", ["lora", "adapter"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saving_and_loading_gives_the_same_output(tmp_path: Path, structured: str, low_cpu_mem_usage: bool) -> None:
    tuned = tuned_vit(structured)
    tuned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(loaded(IMAGES), tuned(IMAGES))


def test_a_fresh_process_loads_the_adapter(tmp_path: Path) -> None:
    tuned = tuned_vit()
    tuned.save_pretrained(tmp_path / "adapter")
    torch.save(tuned(IMAGES).detach(), tmp_path / "expected.pt")
    script = (
        "import sys, torch; sys.path.insert(0, sys.argv[2]); import sensitune; from peft import PeftModel\n"
        "from test_spt_model import IMAGES, tiny_vit\n"
        "model = PeftModel.from_pretrained(tiny_vit(), sys.argv[1] + '/adapter').eval()\n"
        "assert torch.equal(model(IMAGES), torch.load(sys.argv[1] + '/expected.pt', weights_only=True))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
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
    tuned = tuned_vit(modules_to_save=None).double()
    images = IMAGES.double()
    tuned.add_adapter(
        "other",
        SptConfig.from_allocation(mixed_allocation(tiny_vit(), seed=1), init_weights=False, modules_to_save=None),
    )
    tuned.double()
    first = tuned(images)
    tuned.set_adapter("other")
    assert not torch.equal(tuned(images), first)
    tuned.set_adapter("default")
    assert torch.equal(tuned(images), first)
    tuned.base_model.set_adapter(["default", "other"])
    both = tuned(images)
    tuned.base_model.merge_adapter(["default", "other"])
    torch.testing.assert_close(tuned(images), both)


def test_a_second_adapter_does_not_change_what_is_trained() -> None:
    tuned = tuned_vit()
    before = trained_counts(tuned)
    tuned.add_adapter("other", SptConfig.from_allocation(mixed_allocation(tiny_vit(), seed=1)))
    assert trained_counts(tuned) == before


def test_deleting_an_adapter_leaves_no_parameter_of_it() -> None:
    tuned = tuned_vit()
    tuned.add_adapter("other", SptConfig.from_allocation(mixed_allocation(tiny_vit(), seed=1)))
    tuned.delete_adapter("other")
    assert not [name for name in tuned.state_dict() if "other" in name]


def test_two_constructions_without_an_allocation_draw_different_entries_and_saving_keeps_them(tmp_path: Path) -> None:
    config = SptConfig(target_modules=["fc1"], r=0, num_sparse=7, init_weights=False)
    first, second = (get_peft_model(tiny_vit(), config).eval() for _ in range(2))
    key = next(name for name in first.state_dict() if "spt_indices" in name)
    assert not torch.equal(first.state_dict()[key], second.state_dict()[key])
    first.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path).eval()
    assert torch.equal(loaded(IMAGES), first(IMAGES))


def test_gradient_checkpointing_and_accumulation_do_not_change_the_gradients() -> None:
    tuned = tuned_vit()

    def gradients() -> list[torch.Tensor]:
        tuned.zero_grad()
        F.cross_entropy(tuned(IMAGES), LABELS).backward()
        return [parameter.grad.clone() for parameter in tuned.parameters() if parameter.grad is not None]

    plain = gradients()
    tuned.base_model.model.set_grad_checkpointing(True)
    torch.testing.assert_close(gradients(), plain)


def test_forward_features_of_the_model_itself_sees_the_tuned_class_token() -> None:
    tuned = tuned_vit()
    inner = tuned.base_model.model
    with_adapter = inner.forward_features(IMAGES)
    with tuned.disable_adapter():
        without = inner.forward_features(IMAGES)
    assert not torch.allclose(with_adapter[:, 0], without[:, 0])


def test_a_compiled_model_gives_the_same_output_and_gradients_in_one_graph() -> None:
    tuned = tuned_vit()
    F.cross_entropy(tuned(IMAGES), LABELS).backward()
    plain = [parameter.grad.clone() for parameter in tuned.parameters() if parameter.grad is not None]
    tuned.zero_grad()
    compiled = torch.compile(tuned, backend="aot_eager", fullgraph=True)
    loss = F.cross_entropy(compiled(IMAGES), LABELS)
    loss.backward()
    ours = [parameter.grad.clone() for parameter in tuned.parameters() if parameter.grad is not None]
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_dropout_and_drop_path_act_in_training_only() -> None:
    tuned = tuned_vit(dropout=0.5, drop_path=0.5)
    expected = tuned(IMAGES)
    tuned.train()
    assert not torch.equal(tuned(IMAGES), tuned(IMAGES))
    assert torch.equal(tuned.eval()(IMAGES), expected)


def test_an_allocation_for_another_model_is_refused_and_the_model_is_left_alone() -> None:
    allocation = mixed_allocation(tiny_vit())
    other = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=5, init_values=0.1
    )
    shallow = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=5, init_values=0.1
    )
    for model, match in (
        (other, r"has shape \[1, 1, 12\], but `cls_token`"),
        (shallow, "is not a parameter of VisionTransformer"),
    ):
        names = [name for name, _ in model.named_parameters()]
        with pytest.raises(AllocationMismatchError, match=match):
            get_peft_model(model, SptConfig.from_allocation(allocation))
        assert [name for name, _ in model.named_parameters()] == names


def test_bad_settings_name_the_setting() -> None:
    for options, match in (
        ({"r": -1}, "`r` must be 0"),
        ({"structured_type": "bitfit"}, "`structured_type` must be"),
        ({"num_sparse": 0}, "`num_sparse` must be at least 1"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1"),
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
    changed.sum().backward()
    assert all(parameter.grad is not None for parameter in tuned.parameters() if parameter.requires_grad)


def test_mixed_batches_are_refused() -> None:
    layer = tuned_vit().base_model.model.blocks[0].mlp.fc1
    with pytest.raises(ArgumentError, match="cannot apply different adapters within one batch"):
        layer(torch.randn(2, 12), adapter_names=["default", "other"])
