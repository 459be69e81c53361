"""An adapter folder is complete, small and portable; a damaged or foreign one is refused and changes nothing."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_properties import assert_unloading_restores, assert_unmerging_restores, untouched
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from tuned_models import IMAGES, LABELS, tiny_vit, tune

from sensitune.allocation import Allocation, allocate
from sensitune.errors import AdapterFileError, AllocationMismatchError
from sensitune.sensitivity import estimate_sensitivity
from sensitune.tuner import SptConfig

Tensors = dict[str, torch.Tensor]


def vit_allocation(width: int = 12, depth: int = 2, **options: Any) -> Allocation:
    sensitivity = estimate_sensitivity(tiny_vit(width, depth), [(IMAGES, LABELS)], num_batches=1)
    return allocate(sensitivity, structured="lora", **(options or {"tau": 300, "rank": 2}))


def vit(dtype: torch.dtype = torch.float32) -> VisionTransformer:
    return tiny_vit(depth=2, dtype=dtype)


def tuned_vit(**options: Any) -> PeftModel:
    return tune(vit(), vit_allocation(), **options)


@pytest.mark.parametrize("umask", [0o022, 0o027], ids=oct)
@pytest.mark.parametrize("adapter", ["default", "other"])
def test_all_files_of_an_adapter_have_the_permissions_of_the_umask(umask: int, adapter: str, tmp_path: Path) -> None:
    tuned = get_peft_model(vit(), SptConfig.from_allocation(vit_allocation()), adapter_name=adapter)
    (tmp_path / "mine.txt").touch(0o600)
    before = os.umask(umask)
    try:
        tuned.save_pretrained(tmp_path)
    finally:
        os.umask(before)
    folder = tmp_path if adapter == "default" else tmp_path / adapter
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()}
    expected = dict.fromkeys(("README.md", "adapter_config.json", "adapter_model.safetensors"), 0o666 & ~umask)
    assert found == expected | ({"mine.txt": 0o600} if folder == tmp_path else {})
    assert stat.S_IMODE((tmp_path / "mine.txt").stat().st_mode) == 0o600


# -- what is in the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 10.0])
def test_a_file_holds_eight_bytes_per_sparse_value_and_four_per_other_plus_five_percent(
    tmp_path: Path, alpha: float
) -> None:
    allocation = vit_allocation(256, 4, budget=150_000, alpha=alpha)
    get_peft_model(tiny_vit(256, 4), SptConfig.from_allocation(allocation)).save_pretrained(tmp_path)
    others = allocation.trainable_params - allocation.sparse_params + allocation.head_params
    file = tmp_path / "adapter_model.safetensors"
    bound = 8 * allocation.sparse_params + 4 * others
    assert sum(tensor.numel() * tensor.element_size() for tensor in load_file(file).values()) == bound
    assert file.stat().st_size <= 1.05 * bound
    assert allocation.sparse_params > 1000
    assert allocation.structured


def test_indices_are_stored_as_integers_of_four_bytes(tmp_path: Path) -> None:
    tuned_vit().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    indices = {tensor.dtype for name, tensor in tensors.items() if "spt_indices" in name}
    assert indices == {torch.int32}


# -- other places -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_an_adapter_loads_on_a_base_of_another_dtype(
    tmp_path: Path, dtype: torch.dtype, low_cpu_mem_usage: bool
) -> None:
    # PEFT's low-memory loading leaves the copies of `modules_to_save` in the file's dtype, for every method.
    tuned = tuned_vit(**({"modules_to_save": None} if low_cpu_mem_usage else {}))
    tuned.save_pretrained(tmp_path)
    base = vit(dtype=dtype)
    loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    tolerance = 1e-5 if dtype == torch.float64 else 0.1
    output = loaded(IMAGES.to(dtype))
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), tuned(IMAGES), rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
def test_an_adapter_loads_on_another_device(tmp_path: Path) -> None:
    tuned = tuned_vit()
    tuned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(vit().cuda(), tmp_path).eval()
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cuda"}
    torch.testing.assert_close(loaded(IMAGES.cuda()).cpu(), tuned(IMAGES), rtol=1e-4, atol=1e-4)
    back = loaded.cpu()
    torch.testing.assert_close(back(IMAGES), tuned(IMAGES), rtol=1e-5, atol=1e-5)
    assert_unmerging_restores(loaded.cuda(), IMAGES.cuda(), rtol=1e-4, atol=1e-4)
    assert_unloading_restores(loaded, vit())


# -- damage -----------------------------------------------------------------------------------------------------------


def first(tensors: Tensors, part: str) -> str:
    return next(name for name in tensors if part in name)


def drop(tensors: Tensors) -> None:
    del tensors[first(tensors, "spt_up")]


def drop_indices(tensors: Tensors) -> None:
    del tensors[first(tensors, "spt_indices")]


def shorten(tensors: Tensors) -> None:
    name = first(tensors, "spt_sparse")
    tensors[name] = tensors[name][:-1].clone()


def leave_range(tensors: Tensors) -> None:
    tensors[first(tensors, "spt_indices")][-1] = 1_000_000


def go_below_zero(tensors: Tensors) -> None:
    tensors[first(tensors, "spt_indices")][0] = -1


def repeat(tensors: Tensors) -> None:
    name = next(name for name, tensor in tensors.items() if "spt_indices" in name and tensor.numel() > 1)
    tensors[name][1] = tensors[name][0]


def descend(tensors: Tensors) -> None:
    name = next(name for name, tensor in tensors.items() if "spt_indices" in name and tensor.numel() > 1)
    tensors[name] = tensors[name].flip(0).clone()


def lose_a_number(tensors: Tensors) -> None:
    tensors[first(tensors, "spt_up")].view(-1)[0] = torch.nan


def diverge(tensors: Tensors) -> None:
    tensors[first(tensors, "spt_sparse")][0] = torch.inf


def diverge_in_the_head(tensors: Tensors) -> None:
    tensors[first(tensors, "head.bias")][0] = -torch.inf


def store_integers(tensors: Tensors) -> None:
    name = first(tensors, "spt_down")
    tensors[name] = tensors[name].int()


def store_truth(tensors: Tensors) -> None:
    name = first(tensors, "head.weight")
    tensors[name] = tensors[name] > 0


def store_fractional_indices(tensors: Tensors) -> None:
    name = first(tensors, "spt_indices")
    tensors[name] = tensors[name].float()


def add_unknown(tensors: Tensors) -> None:
    tensors["base_model.model.blocks.7.mlp.fc1.spt_down.weight"] = torch.zeros(2, 12)


DAMAGE: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "a missing tensor": (drop, "is incomplete: it lacks `base_model.*spt_up"),
    "missing indices": (drop_indices, "is incomplete: it lacks `base_model.*spt_indices"),
    "a wrong shape": (shorten, r"`base_model.*spt_sparse.*` must be \[\d+\]. Got \[\d+\]"),
    "an index out of range": (leave_range, "holds the index 1000000, outside the site's"),
    "a negative index": (go_below_zero, "holds the index -1, outside the site's"),
    "an index twice": (repeat, "holds an index twice"),
    "indices in descending order": (descend, "holds an index twice, or not in ascending order"),
    "a value that is no number": (lose_a_number, r"`\S+adapter_model.safetensors` is damaged: `.*spt_up.* not finite"),
    "an infinite value": (diverge, r"is damaged: `base_model.*spt_sparse.*` holds a value that is not finite"),
    "an infinite value in the head": (diverge_in_the_head, r"`\S+head\S+bias` holds a value that is not finite"),
    "integers": (store_integers, r"`base_model.*spt_down.*` must hold floating-point numbers, not int32"),
    "truth values in the head": (store_truth, r"`\S+head\S+weight` must hold floating-point numbers, not bool"),
    "fractional indices": (store_fractional_indices, r"spt_indices\S+ must hold int32, not float32"),
    "an unknown tensor": (add_unknown, "which the configuration does not know"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_and_the_base_is_left_as_it_was(tmp_path: Path, damage: str) -> None:
    break_it, match = DAMAGE[damage]
    tuned_vit().save_pretrained(tmp_path)
    rewrite(tmp_path, break_it)
    base = vit()
    with untouched(base), pytest.raises(AdapterFileError, match=match):
        PeftModel.from_pretrained(base, tmp_path)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_second_adapter_is_refused_and_the_first_is_left_as_it_was(tmp_path: Path, damage: str) -> None:
    break_it, match = DAMAGE[damage]
    tuned_vit().save_pretrained(tmp_path)
    rewrite(tmp_path, break_it)
    model = tuned_vit()
    output = model(IMAGES)
    with untouched(model), pytest.raises(AdapterFileError, match=match):
        model.load_adapter(tmp_path, "second")
    assert torch.equal(model(IMAGES), output)


def rewrite(folder: Path, change: Callable[[Tensors], None]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_tensors_of_other_adapters_which_older_peft_wrote_too_are_passed_over(tmp_path: Path) -> None:
    tuned = tuned_vit()
    tuned.save_pretrained(tmp_path)

    def add_another_adapters(tensors: Tensors) -> None:
        name = first(tensors, "spt_up")
        tensors[name.replace("spt_up.", "spt_up.other.")] = torch.ones(3)

    rewrite(tmp_path, add_another_adapters)
    assert torch.equal(PeftModel.from_pretrained(vit(), tmp_path).eval()(IMAGES), tuned(IMAGES))


def test_a_state_dict_that_is_not_an_adapter_file_is_loaded_as_usual() -> None:
    tuned, other = tuned_vit(), tuned_vit(seed=2)
    assert not torch.equal(tuned(IMAGES), other(IMAGES))
    result = tuned.load_state_dict(other.state_dict())
    assert not result.missing_keys
    assert torch.equal(tuned(IMAGES), other(IMAGES))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_another_base_is_refused_by_name_or_shape_and_left_as_it_was(tmp_path: Path, low_cpu_mem_usage: bool) -> None:
    tuned_vit().save_pretrained(tmp_path)
    others = (tiny_vit(16), r"has shape \[.*12\], but"), (tiny_vit(depth=1), "`blocks.1.* is not a parameter of")
    for base, match in others:
        with untouched(base), pytest.raises(AllocationMismatchError, match=match):
            PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"form": "loro"},
            r"adapter_config.json: `site_plan.\S+.form` must be one of lora, adapter, sparse, whole. Got",
        ),
        ({"size": 10**9}, r"adapter_config.json promises \S+ values, more than adapter_model.safetensors of \S+ bytes"),
        ({"size": 0}, r"adapter_config.json: `site_plan.\S+.size` must be a whole number of at least 1. Got 0"),
        ({"rows": [4, 2]}, r"adapter_config.json: `site_plan.\S+.rows` must be a start and a stop behind it"),
        ({"scale": 2}, r"adapter_config.json: `site_plan.\S+.scale` is not a setting"),
        ({"shape": [3]}, "does not go with the shape"),
    ],
)
def test_a_damaged_plan_is_refused_before_memory_is_taken(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    tuned_vit().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    site = next(name for name, plan in config["site_plan"].items() if plan["form"] == "lora")
    config["site_plan"][site] |= change
    path.write_text(json.dumps(config))
    base = vit()
    with untouched(base), pytest.raises(AdapterFileError, match=sentence):
        PeftModel.from_pretrained(base, tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", r"adapter_config.json cannot be read: Expecting property name"),
        ("[" * 50_000, "adapter_config.json cannot be read: it is nested too deeply"),
        ('["SPT"]', "adapter_config.json must hold a group of settings"),
        (
            '{"peft_type": "SPT", "dropout": 1.0}',
            "adapter_config.json: `dropout` must be a number of at least 0 and below 1",
        ),
        ('{"peft_type": "SPT", "r": true}', "adapter_config.json: `r` must be a whole number of at least 0. Got True"),
        ('{"peft_type": "SPT", "rule": 3}', "adapter_config.json: `rule` must be text or None. Got 3"),
    ],
)
def test_a_damaged_configuration_is_refused_by_name(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(AdapterFileError, match=sentence):
        SptConfig.from_pretrained(tmp_path)


def test_an_unknown_setting_is_refused_beside_weights_and_warned_of_by_peft_without(tmp_path: Path) -> None:
    tuned_vit().save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rang": 3}))
    with pytest.raises(AdapterFileError, match="adapter_config.json: 'rang' is not a setting of SPT"):
        SptConfig.from_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['rang'\] for class SptConfig"):
        SptConfig.from_pretrained(tmp_path)


def test_a_configuration_that_does_not_belong_to_the_file_is_refused(tmp_path: Path) -> None:
    tuned_vit().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    site = next(name for name, plan in config["site_plan"].items() if plan["form"] == "sparse")
    config["site_plan"][site]["size"] += 1
    path.write_text(json.dumps(config))
    base = vit()
    with untouched(base), pytest.raises(AdapterFileError, match="does not fit its configuration"):
        PeftModel.from_pretrained(base, tmp_path)
