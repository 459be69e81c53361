"""The baseline Adapter+ of the accuracy suite: its formula and cost, its runs, and its row in the report."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from sensitune.backbones import BackboneSpec, load_backbone
from sensitune.errors import ArgumentError, ConfigError
from sensitune.runs import Run
from sensitune.sweeps import (
    EngineSettings,
    JobOutcome,
    RunKey,
    SweepConfig,
    SweepRecord,
    SweepResult,
    SweepRun,
    collect,
    planned_runs,
    run_sweep,
)
from sensitune.sweeps._choose import choosing_jobs
from sensitune.training import read_result

SUITE = Path(__file__).parents[2] / "benchmarks/accuracy"
RATES = [1e-3, 3e-3]


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports a module of the suite, which is a folder of scripts."""
    monkeypatch.syspath_prepend(str(SUITE))
    return importlib.import_module


@pytest.fixture
def adapter_plus(suite: Any) -> ModuleType:
    return suite("adapter_plus")


def make_model() -> nn.Module:
    spec = BackboneSpec("vit_tiny_patch16_224", pretrained=False, image_size=32, num_blocks=2)
    return load_backbone(spec, num_classes=3).model


def write_images(folder: Path, *, per_class: int = 10) -> Path:
    generator = np.random.default_rng(0)
    for name, colour in {"blue": (40, 40, 200), "red": (200, 40, 40)}.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = np.clip(np.array(colour) + generator.integers(-60, 60, size=(40, 40, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "squares")


@pytest.fixture
def sweep(squares: Path) -> SweepConfig:
    backbone = {"name": "vit_tiny_patch16_224", "pretrained": False, "image_size": 32, "num_blocks": 2}
    run = {"backbone": backbone, "compute": {"device": "cpu"}}
    recipe = {"epochs": 1, "warmup_share": 0.0, "batch_size": 8, "validate": "end"}
    return SweepConfig.from_dict(
        {
            "tasks": {"natural": [str(squares)]},
            "methods": {"Head only": {"allocation": {"method": "head"}}},
            "choose": {"recipe.learning_rate": RATES},
            "choose_by": "method",
            "choose_tasks": ["squares"],
            "retrain": False,
            "seeds": [0, 1],
            "run": run | {"recipe": recipe},
        }
    )


def test_the_module_is_its_formula(adapter_plus: ModuleType) -> None:
    adapter = adapter_plus.AdapterPlus(5, 2).double()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    down, up = (adapter.down.weight, adapter.down.bias), (adapter.up.weight, adapter.up.bias)
    hidden = x @ down[0].T + down[1]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    expected = x + adapter.scale * (hidden @ up[0].T + up[1])
    torch.testing.assert_close(adapter(x), expected, rtol=1e-12, atol=1e-12)


def test_an_adapter_starts_near_the_identity_as_published(adapter_plus: ModuleType) -> None:
    adapter = adapter_plus.AdapterPlus(384, 7)
    assert (adapter.scale == 1).all()
    for layer in (adapter.down, adapter.up):
        assert (layer.bias == 0).all()
        assert layer.weight.abs().max() <= 0.02
        # A normal distribution cut at two standard deviations keeps 0.88 of its own.
        assert layer.weight.std().item() == pytest.approx(0.0088, rel=0.05)


def test_rank_seven_costs_what_the_budget_is_within_two_per_cent(adapter_plus: ModuleType) -> None:
    adapters = [adapter_plus.AdapterPlus(384, 7) for _ in range(6)]
    cost = sum(each.numel() for adapter in adapters for each in adapter.parameters())
    assert cost == 6 * (2 * 384 * 7 + 7 + 2 * 384) == 36_906
    assert abs(cost / 36_864 - 1) < 0.02


def test_each_block_is_followed_by_its_adapter(adapter_plus: ModuleType) -> None:
    plain, tuned = make_model(), make_model()
    adapters = adapter_plus.add_adapters(tuned, rank=3)
    for parameter in (each for adapter in adapters for each in adapter.parameters()):
        nn.init.normal_(parameter, std=0.1)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = plain.norm_pre(plain.patch_drop(plain._pos_embed(plain.patch_embed(images))))
        for block, adapter in zip(plain.blocks, adapters, strict=True):
            x = adapter(block(x))
        torch.testing.assert_close(tuned(images), plain.forward_head(plain.norm(x)))


def test_adapters_and_head_alone_are_left_to_train(adapter_plus: ModuleType) -> None:
    model = make_model()
    adapters = adapter_plus.add_adapters(model, rank=3)
    expected = {id(each) for module in (*adapters, model.head) for each in module.parameters()}
    assert {id(each) for each in model.parameters() if each.requires_grad} == expected


def test_a_sweep_without_the_method_head_is_refused(adapter_plus: ModuleType, squares: Path) -> None:
    run = {"backbone": {"name": "vit_tiny_patch16_224"}, "allocation": {"method": "lora"}}
    sweep = SweepConfig.from_dict({"tasks": {"natural": [str(squares)]}, "methods": {"LoRA": {}}, "run": run})
    with pytest.raises(ConfigError, match="takes the run settings of the sweep's method `head`"):
        adapter_plus.sweep_of(sweep, rank=2)


def test_the_rate_is_chosen_without_the_test_split_and_finished_runs_are_not_repeated(
    adapter_plus: ModuleType, sweep: SweepConfig, tmp_path: Path
) -> None:
    ours = adapter_plus.sweep_of(sweep, rank=2)
    assert planned_runs(ours, tmp_path) == [("choose settings with", 2, 2), ("test", 2, 2)]
    told: list[str | None] = []
    result = run_sweep(
        ours, tmp_path, run=adapter_plus.run_job, on_done=lambda outcome, ended, total: told.append(outcome.error)
    )
    assert result.complete
    # The chosen run of seed 0 is trained once and tested after the choice.
    assert told == [None] * (2 + 2)
    rate = result.runs[0].key.setting["recipe.learning_rate"]
    reached = result.validation["squares", "Adapter+"]
    assert rate == max(RATES, key=lambda each: reached[f"learning_rate={each}"])
    tested = {path.parent for path in tmp_path.rglob("evaluation.json")}
    assert tested == {tmp_path / f"runs/squares/adapter/learning_rate={rate}/seed{seed}" for seed in (0, 1)}
    assert all(read_result(path.parent).test_accuracy_last is None for path in tmp_path.rglob("training.json"))
    assert SweepRecord.load(tmp_path / "results.json") == result.record
    again: list[JobOutcome] = []
    run_sweep(ours, tmp_path, run=adapter_plus.run_job, on_done=lambda outcome, ended, total: again.append(outcome))
    assert again == []
    assert collect(ours, tmp_path).record == result.record
    assert planned_runs(ours, tmp_path) == [("choose settings with", 0, 2), ("test", 0, 2)]


def test_training_starts_from_the_sweeps_model_and_leaves_its_frozen_weights_alone(
    adapter_plus: ModuleType, sweep: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = adapter_plus.sweep_of(sweep, rank=2)
    (job, *_) = choosing_jobs(ours, tmp_path)
    seen: dict[str, Any] = {}
    original = adapter_plus.train

    def keep(model: nn.Module, *arguments: Any, **settings: Any) -> Any:
        seen["model"], seen["before"] = model, {name: value.clone() for name, value in model.state_dict().items()}
        return original(model, *arguments, **settings)

    monkeypatch.setattr(adapter_plus, "train", keep)
    assert adapter_plus.run_job(job).error is None
    saved = load_file(job.folder / "adapter/trained.safetensors")
    free = {name for name, parameter in seen["model"].named_parameters() if parameter.requires_grad}
    assert saved.keys() == free
    base = Run.load(job.folder).ingredients.backbone.model.state_dict()
    # blocks.0.0 is a block and blocks.0.1 its adapter.
    before = {re.sub(r"^(blocks\.\d+)\.0\.", r"\1.", name): value for name, value in seen["before"].items()}
    assert all(torch.equal(before[name], value) for name, value in base.items())
    for name, value in seen["model"].state_dict().items():
        assert torch.equal(value, seen["before"][name]) == (name not in free), name
    assert read_result(job.folder).trained_params == sum(each.numel() for each in saved.values())


def test_a_training_that_diverges_counts_as_zero_in_the_choice_and_is_left_out_of_the_test(
    adapter_plus: ModuleType, sweep: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = adapter_plus.train

    def fragile(model: nn.Module, data: Any, recipe: Any, *arguments: Any, **settings: Any) -> Any:
        if recipe.learning_rate == RATES[1] or settings["seed"] == 1:
            raise adapter_plus.NonFiniteError("The loss must stay finite.")
        return original(model, data, recipe, *arguments, **settings)

    monkeypatch.setattr(adapter_plus, "train", fragile)
    ours = adapter_plus.sweep_of(sweep, rank=2)
    result = run_sweep(ours, tmp_path, run=adapter_plus.run_job)
    assert result.validation["squares", "Adapter+"][f"learning_rate={RATES[1]}"] == 0.0
    assert [(run.key.seed, run.key.setting["recipe.learning_rate"]) for run in result.runs] == [(0, RATES[0])]
    assert {str(key): error for key, error in result.failed.items()} == {
        f"squares/adapter/learning_rate={RATES[0]}/seed1": "The loss must stay finite."
    }
    again: list[JobOutcome] = []
    run_sweep(ours, tmp_path, run=adapter_plus.run_job, on_done=lambda outcome, ended, total: again.append(outcome))
    assert again == []


def made_result(sweep: SweepConfig, accuracies: dict[int, float], *, cost: int) -> SweepResult:
    """What `collect` would find: a run of the sweep's only method for each seed."""
    (label,) = sweep.methods
    rate = {"recipe.learning_rate": 3e-3}
    runs = [
        SweepRun(RunKey("squares", label, rate, seed), accuracy, 0.5, cost, 1.0, "folder")
        for seed, accuracy in accuracies.items()
    ]
    return SweepResult(sweep, tuple(runs), 2, {}, {("squares", label): {"learning_rate=0.003": 0.5}})


def test_the_results_are_a_row_of_the_report(
    suite: Any, adapter_plus: ModuleType, sweep: SweepConfig, tmp_path: Path
) -> None:
    report, path = suite("report"), tmp_path / "results.json"
    plus = made_result(adapter_plus.sweep_of(sweep, rank=2), {0: 0.75, 1: 0.5}, cost=1000)
    plus.record.save(path)
    result = report.with_results(made_result(sweep, {0: 0.5, 1: 0.5}, cost=990), path)
    summary = report.summarise(result, ["Head only"])
    assert [summary[name] for name in ("num_runs", "num_runs_planned", "ranked_on")] == [4, 4, 2]
    row = summary["methods"][1]
    assert (row["method"], row["trainable_params"], row["equal_cost"]) == ("Adapter+", 1000, True)
    assert (row["groups"]["natural"]["mean"], row["mean_rank"]) == (62.5, 1.25)
    assert row["Head only minus this"]["difference"] == -12.5
    assert "| Adapter+ | 1,000 | 0.003 | 62.5 ± 12.5 | 62.5 ± 12.5 | 1.25 |" in report.markdown(summary, ["Head only"])
    assert summary["validation"][1]["method"] == "Adapter+"


def test_results_of_another_sweep_or_given_twice_are_refused(
    suite: Any, adapter_plus: ModuleType, sweep: SweepConfig, tmp_path: Path
) -> None:
    report, path = suite("report"), tmp_path / "results.json"
    head = made_result(sweep, {0: 0.5}, cost=0)
    made_result(adapter_plus.sweep_of(sweep, rank=2), {0: 0.5, 7: 0.5}, cost=1000).record.save(path)
    with pytest.raises(ArgumentError, match=r"has a run of squares, seed 7, which is not of this sweep"):
        report.with_results(head, path)
    made_result(adapter_plus.sweep_of(sweep, rank=2), {0: 0.5}, cost=1000).record.save(path)
    with pytest.raises(ArgumentError, match=r"results of 'Adapter\+', which the table has already"):
        report.with_results(report.with_results(head, path), path)


@pytest.mark.slow
def test_two_workers_find_what_one_finds(adapter_plus: ModuleType, sweep: SweepConfig, tmp_path: Path) -> None:
    ours = adapter_plus.sweep_of(sweep, rank=2)
    one, two = (
        run_sweep(ours, tmp_path / str(number), engine=EngineSettings(workers=number), run=adapter_plus.run_job)
        for number in (1, 2)
    )
    assert [run.accuracy for run in one.runs] == [run.accuracy for run in two.runs]
