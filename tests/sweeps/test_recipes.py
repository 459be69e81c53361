"""The files of ``recipes/``: each is what its name says, and expects what was printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sensitune.backbones import PUBLISHED_BACKBONES
from sensitune.data import FGVC_DATASETS, VTAB_TASKS
from sensitune.sweeps import SweepConfig

RECIPES = Path(__file__).parents[2] / "recipes"
PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"

# natural, specialized, structured, mean: He et al., ICCV 2023, as quoted in arXiv 2411.01800.
VTAB_PRINTED = {
    ("vit_b16_in21k", "spt_lora"): (81.9, 85.9, 61.3, 76.4),
    ("vit_b16_in21k", "spt_adapter"): (82.0, 85.8, 61.4, 76.4),
    ("vit_b16_mae", "spt_lora"): (65.4, 82.4, 61.5, 69.8),
    ("vit_b16_mae", "spt_adapter"): (65.6, 82.7, 60.7, 69.7),
    ("vit_b16_mocov3", "spt_lora"): (76.5, 86.0, 63.6, 75.3),
    ("vit_b16_mocov3", "spt_adapter"): (76.6, 85.0, 61.7, 74.4),
    ("swin_b_in22k", "spt_lora"): (83.1, 87.4, 60.4, 77.2),
    ("swin_b_in22k", "spt_adapter"): (83.0, 87.3, 62.1, 77.5),
    ("convnext_b_in22k", "spt_lora"): (83.4, 86.7, 65.9, 78.7),
    ("convnext_b_in22k", "spt_adapter"): (83.7, 86.2, 65.3, 78.4),
}
# cub, nabirds, flowers, dogs, cars, mean: He et al., ICCV 2023.
FGVC_PRINTED = {
    ("vit_b16_in21k", "spt_lora"): (88.6, 83.4, 99.5, 91.4, 87.3, 90.1),
    ("vit_b16_in21k", "spt_adapter"): (89.1, 83.3, 99.2, 91.1, 86.2, 89.8),
}
PRINTED = {
    **{("vtab1k", *key): values for key, values in VTAB_PRINTED.items()},
    **{("fgvc", *key): values for key, values in FGVC_PRINTED.items()},
}
LABELS = {"spt_lora": "SPT-LoRA", "spt_adapter": "SPT-Adapter"}


def load(benchmark: str, model: str, method: str) -> SweepConfig:
    return SweepConfig.from_yaml(RECIPES / f"{benchmark}_{model}_{method}.yaml")


every_recipe = pytest.mark.parametrize(("benchmark", "model", "method"), PRINTED, ids=lambda part: str(part))


def test_there_is_a_recipe_for_every_published_setting_and_no_other() -> None:
    assert {path.name for path in RECIPES.glob("*.yaml")} == {"_".join(key) + ".yaml" for key in PRINTED}


@every_recipe
def test_a_recipe_is_what_its_name_says(benchmark: str, model: str, method: str) -> None:
    sweep = load(benchmark, model, method)
    assert list(sweep.methods) == [LABELS[method]]
    config = sweep.method_config(LABELS[method])
    assert (config.backbone.name, config.allocation.method) == (model, method.replace("_", "-"))
    assert model in PUBLISHED_BACKBONES
    named = VTAB_TASKS if benchmark == "vtab1k" else FGVC_DATASETS
    assert sweep.sources == {task: f"{benchmark}/{task}" for task in named}
    assert list(sweep.groups) == (["natural", "specialized", "structured"] if benchmark == "vtab1k" else ["fgvc"])


@every_recipe
def test_a_recipe_names_its_command_its_hardware_and_what_it_is(benchmark: str, model: str, method: str) -> None:
    sweep = load(benchmark, model, method)
    root = {"vtab1k": "data/vtab-1k", "fgvc": "data/fgvc"}[benchmark]
    assert sweep.command == f"sensitune sweep recipes/{benchmark}_{model}_{method}.yaml --root {root}"
    assert LABELS[method] in sweep.about
    num_runs = len(sweep.sources) * (len(sweep.candidates()) + len(sweep.seeds))
    assert f"= {num_runs} runs" in sweep.hardware
    assert "Estimates, nothing of it measured" in sweep.hardware


@every_recipe
def test_a_recipe_expects_the_printed_scores(benchmark: str, model: str, method: str) -> None:
    published = load(benchmark, model, method).published
    assert published is not None
    assert published.label == f"{LABELS[method]} (published)"
    assert published.source.startswith("He et al., ICCV 2023")
    *parts, mean = PRINTED[benchmark, model, method]
    assert published.mean == mean
    if benchmark == "vtab1k":
        assert published.groups == dict(zip(("natural", "specialized", "structured"), parts, strict=True))
        assert not published.tasks
    else:
        assert published.tasks == dict(zip(FGVC_DATASETS, parts, strict=True))
        assert not published.groups
    # As printed, which is not always the mean of what is printed beside it: 77.2 for Swin-B, of parts that mean 77.0.
    assert mean == pytest.approx(sum(parts) / len(parts), abs=0.25)


@every_recipe
def test_a_recipe_follows_the_published_protocol(benchmark: str, model: str, method: str) -> None:
    sweep = load(benchmark, model, method)
    config = sweep.method_config(LABELS[method])
    recipe = config.recipe
    allocation, data = config.allocation, config.data
    assert (allocation.rank, allocation.alpha, allocation.beta, data.normalize) == (8, 10.0, 5.0, "imagenet")
    assert (config.sensitivity.num_batches, config.sensitivity.batch_size) == (16, 32)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size, recipe.epochs) == (1e-3, 1e-4, 64, 100)
    assert (recipe.warmup_share, recipe.dropout, recipe.drop_path, recipe.precision) == (0.1, 0.1, 0.1, "float32")
    assert (data.resize, data.augment) == ((256, True) if benchmark == "fgvc" else (None, False))
    more = (100_000,) if model in ("vit_b16_mae", "vit_b16_mocov3") else ()
    assert sweep.choose == {"allocation.budget": (*more, 200_000, 400_000, 600_000, 800_000, 1_000_000)}
    assert (sweep.choose_by, sweep.retrain, sweep.seeds) == ("task", True, (0, 1, 2))


@every_recipe
def test_a_backbone_that_is_on_no_hub_comes_from_its_original_file(benchmark: str, model: str, method: str) -> None:
    checkpoint = load(benchmark, model, method).method_config(LABELS[method]).backbone.checkpoint
    backbone = PUBLISHED_BACKBONES[model]
    assert checkpoint == (None if backbone.on_hub else f"checkpoints/{backbone.file}")


@pytest.mark.parametrize(("benchmark", "model"), dict.fromkeys(key[:2] for key in PRINTED))
def test_the_page_on_recipes_has_their_printed_means_and_their_runs(benchmark: str, model: str) -> None:
    lora, adapter = (load(benchmark, model, method) for method in LABELS)
    assert lora.published is not None
    assert adapter.published is not None
    runs = f"{len(lora.sources)} × ({len(lora.candidates())} + {len(lora.seeds)})"
    means = f"{lora.published.mean} / {adapter.published.mean}"
    assert f"| `{benchmark}_{model}_spt_*` | {means} | {runs} |" in PAGE.read_text(encoding="utf-8")


def test_the_page_on_recipes_shows_a_sweep_that_loads(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(example, encoding="utf-8")
    sweep = SweepConfig.from_yaml(tmp_path / "sweep.yaml")
    assert list(sweep.sources) == ["solar", "wood", "plans"]
    assert len(sweep.candidates()) == 2
