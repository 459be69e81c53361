"""The method peft: configurations of PEFT's own train, are saved, used and compared like ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_runs import changed

from sensitune.backbones import BackboneSpec, load_backbone
from sensitune.errors import ArgumentError, ConfigError
from sensitune.runs import METHODS, AllocationSettings, Run, RunConfig, compare, merge, predict
from sensitune.sweeps import SweepConfig, run_sweep
from sensitune.training import predict_probabilities

DORA = {"peft_type": "LORA", "r": 2, "use_dora": True}
WIDTH, DEPTH = 192, 2
# Of every block, by [out, in]: the stored qkv, the projection of attention, and the two layers of the MLP.
SHAPES = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]


def peft_run(config: RunConfig, peft: Any, path: Path) -> Run:
    allocation = {"method": "peft", "budget": None, "peft": peft}
    return Run.open(path, changed(config, allocation=allocation, recipe={"epochs": 1}))


@pytest.mark.parametrize(
    ("peft", "cost"),
    [
        ({"peft_type": "LORA", "r": 2}, DEPTH * sum(2 * (rows + columns) for rows, columns in SHAPES)),
        (DORA, DEPTH * sum(2 * (rows + columns) + rows for rows, columns in SHAPES)),
        ({"peft_type": "VERA", "r": 16}, DEPTH * sum(16 + rows for rows, _ in SHAPES)),
        ({"peft_type": "IA3"}, DEPTH * sum(rows for rows, _ in SHAPES)),
        ({"peft_type": "OFT", "oft_block_size": 4}, DEPTH * sum(columns // 4 * 6 for _, columns in SHAPES)),
        ({"peft_type": "LOHA", "r": 1, "target_modules": ["attn.proj"]}, DEPTH * 4 * WIDTH),
    ],
    ids=lambda each: str(each.get("peft_type", "")) if isinstance(each, dict) else "",
)
def test_it_costs_what_trains_and_its_folder_is_all_it_needs(
    peft: dict[str, Any], cost: int, config: RunConfig, images: Path, tmp_path: Path
) -> None:
    run = peft_run(config, peft, tmp_path / "run")
    result, origin = run.train(), run.origin()
    assert run.allocation() is None
    assert origin.trainable_params == cost
    assert result.trained_params == cost + origin.head_params
    assert run.evaluate().accuracy == result.test_accuracy_last
    assert any("head" in name for name in load_file(run.folder.training.adapter / "adapter_model.safetensors"))
    files = sorted(images.rglob("*.png"))[:4]
    expected = predict(run.folder.training.adapter, files, device="cpu").probabilities
    merged = merge(run.folder.training.adapter, tmp_path / "merged.safetensors")
    plain = load_backbone(BackboneSpec("vit_tiny_patch16_224", checkpoint=str(merged)), num_classes=3, keep_head=True)
    pictures = [Image.open(file) for file in files]
    found = predict_probabilities(plain.model, pictures, run.ingredients.transform, device="cpu")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_file_or_its_folder_says_the_same_and_is_recorded_whole(config: RunConfig, tmp_path: Path) -> None:
    elsewhere = {"base_model_name_or_path": "/home/someone/model", "inference_mode": True, "revision": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(DORA | elsewhere), encoding="utf-8")
    for given in (str(tmp_path), str(tmp_path / "adapter_config.json")):
        run = peft_run(config, given, tmp_path / "run")
        assert run.config == peft_run(config, DORA, tmp_path / "run").config
        assert run.config.allocation.peft == DORA
    assert run.config.method.title(run.config.allocation) == "PEFT (LORA)"
    assert Run.load(tmp_path / "run").config == run.config


def test_the_backbone_and_the_head_start_as_in_every_other_method(config: RunConfig, tmp_path: Path) -> None:
    run = peft_run(config, DORA, tmp_path / "run")
    base = run.ingredients.backbone.model.state_dict()
    tuned = METHODS["peft"].make_tuned(run).get_base_model().state_dict()
    for name, value in base.items():
        alike = [key for key in tuned if key.replace("base_layer.", "").replace("modules_to_save.default.", "") == name]
        assert alike
        assert all(torch.equal(tuned[key], value) for key in alike)


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        (
            {"peft_type": "LORRA"},
            "`allocation.peft.peft_type` must be a type of the installed PEFT. Got 'LORRA'. .* LORA",
        ),
        ({"r": 4}, "`allocation.peft.peft_type` is missing"),
        (
            {"peft_type": "lora", "ues_dora": True},
            "`allocation.peft.ues_dora` is not a setting of PEFT's LORA. The closest one is `allocation.peft.use_dora`",
        ),
        ("nowhere.json", "nowhere.json cannot be read"),
    ],
)
def test_a_configuration_that_peft_does_not_know_is_refused(peft: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AllocationSettings(method="peft", peft=peft)


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "PROMPT_TUNING learns a prompt, which"),
        (
            {"peft_type": "LORA", "target_modules": ["nothing"]},
            "PEFT cannot put .* on vit_tiny_patch16_224: No modules",
        ),
        ({"peft_type": "LORA", "r": 0}, "PEFT cannot put .*: `r` should be a positive integer"),
    ],
)
def test_a_configuration_that_does_not_fit_the_model_is_refused(
    peft: dict[str, Any], message: str, config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=message):
        peft_run(config, peft, tmp_path / "run").train()


def test_it_is_compared_with_the_others_on_the_same_images(config: RunConfig, tmp_path: Path) -> None:
    given = changed(
        config, allocation={"method": "peft", "budget": None, "rank": 1, "peft": DORA}, recipe={"epochs": 1}
    )
    compared = compare(given, tmp_path, methods=("peft", "lora", "sparse"))
    costs = [run.origin().trainable_params for run in compared]
    assert costs[0] == DEPTH * sum(2 * (rows + columns) + rows for rows, columns in SHAPES)
    assert costs[1] == costs[2]
    assert [run.config.allocation.peft for run in compared] == [DORA, None, None]


def test_a_sweep_chooses_and_tests_it(config: RunConfig, tmp_path: Path) -> None:
    shared = changed(config, recipe={"epochs": 1}).to_dict()
    source = shared.pop("data")["source"]
    del shared["allocation"], shared["seed"]
    sweep = SweepConfig.from_dict(
        {
            "tasks": {"natural": [source]},
            "methods": {"DoRA": {"allocation": {"method": "peft", "peft": DORA}}},
            "choose": {"recipe.learning_rate": [1e-3, 3e-3]},
            "seeds": [0],
            "run": shared,
        }
    )
    result = run_sweep(sweep, tmp_path / "sweep")
    assert result.complete
    assert result.runs[0].trainable_params == DEPTH * sum(2 * (rows + columns) + rows for rows, columns in SHAPES)
