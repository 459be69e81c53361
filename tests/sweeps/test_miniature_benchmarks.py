"""VTAB-1k and FGVC in small, in their real layouts, through the files of ``recipes/`` to the field's tables.

The images have a few pixels, the splits are short, the backbone is a tiny random one. The tasks, folders and lists, the
recipes, the choice on the validation split, the final training and the tables are the real ones.
"""

from __future__ import annotations

import csv
import gc
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from sensitune.data import FGVC_DATASETS, VTAB_TASKS, VtabTask, _vtab
from sensitune_command import main

RECIPES = Path(__file__).parents[2] / "recipes"
# Instead of 800, 200 and 1,000 images, of up to 73,728 test images, and of up to 397 classes.
SPLITS = {"train800": 40, "val200": 16, "train800val200": 56}
TEST_SIZE = 24
MOST_CLASSES = 20
TINY = {
    "backbone": {"name": "test_vit", "pretrained": False, "image_size": 16, "num_blocks": 1},
    "allocation": {"rank": 2},
    "compute": {"device": "cpu"},
    "sensitivity": {"num_batches": 2, "batch_size": 16},
    "recipe": {"epochs": 1, "warmup_share": 0, "batch_size": 128, "validate": "end"},
}
BUDGETS = [1_000, 2_000]


def shorten(task: VtabTask) -> VtabTask:
    return replace(task, num_classes=min(task.num_classes, MOST_CLASSES), test_sizes=(TEST_SIZE,))


SHORT_TASKS = {name: shorten(task) for name, task in VTAB_TASKS.items()}


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_vtab(root: Path) -> Path:
    """Every task with its lists; the lines of a list name 8 images in turn."""
    for task in SHORT_TASKS.values():
        for split, size in {**SPLITS, "test": TEST_SIZE}.items():
            for index in range(8):
                write_image(root / task.name / "images" / split / f"{index:06d}.png", seed=index)
            lines = [f"images/{split}/{line % 8:06d}.png {line % task.num_classes}" for line in range(size)]
            (root / task.name / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_fgvc(root: Path) -> Path:
    """Every data set with an image of every class in one of its splits, and ids that start at 1."""
    for dataset in FGVC_DATASETS.values():
        home = root / dataset.folder
        splits: dict[str, dict[str, int]] = {"train": {}, "val": {}, "test": {}}
        for index in range(dataset.num_classes):
            name = f"{index:03d}.kind/{index:05d}.png"
            splits[("train", "val", "test")[index % 3]][name] = index + 1
            write_image(home / dataset.images / name, seed=index % 8)
        for split, labels in splits.items():
            (home / f"{split}.json").write_text(json.dumps(labels))
    return root


@pytest.fixture
def _short_vtab(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader refuses splits that are shorter than the benchmark's."""
    monkeypatch.setattr(_vtab, "VTAB_SIZES", SPLITS)
    monkeypatch.setattr(_vtab, "VTAB_TASKS", SHORT_TASKS)


@pytest.fixture(autouse=True)
def _objects_out_of_the_collectors_sight() -> Iterator[None]:
    """accelerate collects garbage after every training: half of a tiny run's time, most of it on imported modules."""
    import sensitune.training._trainer  # noqa: F401  imports them

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tiny_recipe(name: str, path: Path, **settings: Any) -> Path:
    """A recipe of the repository with a tiny model, two budgets and two seeds."""
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    values |= {"choose": {"allocation.budget": BUDGETS}, "seeds": [0, 1], "run": TINY | settings}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def sweep(recipe: Path, root: Path) -> Path:
    folder = recipe.parent / "sweep"
    assert main(["sweep", str(recipe), "--output", str(folder), "--root", str(root)]) == 0
    return folder


def files_of_the_runs(folder: Path) -> dict[Path, int]:
    parts = (path for part in ("runs", "scores") for path in (folder / part).rglob("*"))
    return {path: path.stat().st_mtime_ns for path in parts if path.is_file()}


def accuracies_of_the_runs(folder: Path) -> dict[str, list[float]]:
    """Task -> what every tested run wrote into its own folder, by seed."""
    found: dict[str, list[float]] = {}
    for file in sorted((folder / "runs").glob("*/*/*,retrained/seed*/evaluation.json")):
        written = json.loads(file.read_text())
        assert written["split"] == "test"
        found.setdefault(file.relative_to(folder / "runs").parts[0], []).append(written["accuracy"])
    return found


def markdown_rows(folder: Path) -> list[dict[str, str]]:
    lines = [line for line in (folder / "table.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    headings, _, *rows = [[cell.strip().replace(r"\_", "_") for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(headings, row, strict=True)) for row in rows]


def shown(by_seed: list[float]) -> str:
    return f"{100 * fmean(by_seed):.1f} ± {100 * stdev(by_seed):.1f}"


def check_table(folder: Path, groups: Mapping[str, list[str]], label: str) -> None:
    """Every number of the table, from the evaluations of the runs alone."""
    accuracies = accuracies_of_the_runs(folder)
    assert {task: len(values) for task, values in accuracies.items()} == {
        task: 2 for tasks in groups.values() for task in tasks
    }
    means = {
        group: [fmean(accuracies[task][seed] for task in tasks) for seed in (0, 1)] for group, tasks in groups.items()
    }
    headline = [fmean(values[seed] for values in means.values()) for seed in (0, 1)]
    expected = {task: shown(accuracies[task]) for tasks in groups.values() for task in tasks}
    if len(groups) > 1:
        expected |= {group: shown(values) for group, values in means.items()}
    ours, _ = markdown_rows(folder)
    assert ours.pop("method") == label
    assert min(BUDGETS) <= int(ours.pop("trainable").replace(",", "")) <= max(BUDGETS)
    assert ours == expected | {"mean": shown(headline)}
    assert list(ours) == [*expected, "mean"]
    with (folder / "table.csv").open(encoding="utf-8") as file:
        measured, published = csv.DictReader(file)
    assert float(measured["mean"]) == pytest.approx(fmean(headline), abs=1e-9)
    assert float(measured["mean_std"]) == pytest.approx(stdev(headline), abs=1e-9)
    assert (measured["num_seeds"], measured["published"], published["published"]) == ("2", "False", "True")
    latex = (folder / "table.tex").read_text(encoding="utf-8")
    assert latex.count(r"\rotatebox") == len(ours)
    assert f"\n{label} & " in latex


@pytest.mark.usefixtures("_short_vtab")
def test_a_small_vtab1k_goes_from_its_lists_to_the_table(tmp_path: Path) -> None:
    recipe = tiny_recipe("vtab1k_vit_b16_in21k_spt_lora", tmp_path / "vtab.yaml")
    folder = sweep(recipe, write_vtab(tmp_path / "data"))
    groups: dict[str, list[str]] = {}
    for task in VTAB_TASKS.values():
        groups.setdefault(task.group, []).append(task.name)
    assert [len(tasks) for tasks in groups.values()] == [7, 4, 8]
    check_table(folder, groups, "SPT-LoRA")
    printed = {name: cell for name, cell in markdown_rows(folder)[1].items() if cell != "–"}
    assert printed == {
        "method": "SPT-LoRA (published)",
        "natural": "81.9",
        "specialized": "85.9",
        "structured": "61.3",
        "mean": "76.4",
    }
    for task in VTAB_TASKS:
        trained = {str(path.relative_to(folder / "runs" / task)) for path in (folder / "runs" / task).glob("*/*/*")}
        tried = {f"spt-lora/budget={budget}/seed0" for budget in BUDGETS}
        assert tried < trained
        assert len(trained) == 2 + 2


def test_a_small_fgvc_goes_to_its_table_and_again_does_only_what_is_missing(tmp_path: Path) -> None:
    settings = {"data": {"resize": 18, "augment": True}}
    recipe = tiny_recipe("fgvc_vit_b16_in21k_spt_adapter", tmp_path / "fgvc.yaml", **settings)
    data = write_fgvc(tmp_path / "data")
    folder = sweep(recipe, data)
    check_table(folder, {"fgvc": list(FGVC_DATASETS)}, "SPT-Adapter")
    assert {name: markdown_rows(folder)[1][name] for name in (*FGVC_DATASETS, "mean")} == {
        "cub": "89.1",
        "nabirds": "83.3",
        "flowers": "99.2",
        "dogs": "91.1",
        "cars": "86.2",
        "mean": "89.8",
    }
    before = files_of_the_runs(folder)
    tables = {path: path.read_bytes() for path in folder.glob("table.*")}
    assert len(tables) == 3

    sweep(recipe, data)
    assert files_of_the_runs(folder) == before

    missing = next((folder / "runs" / "cub").glob("*/*,retrained/seed1/evaluation.json"))
    missing.unlink()
    answers = missing.parent / "answers.safetensors"
    said = answers.read_bytes()
    sweep(recipe, data)
    after = files_of_the_runs(folder)
    # The test's accuracy is said in the adapter's card too, and what the model says of each image is written with it.
    card = missing.parent / "adapter" / "README.md"
    assert {path for path in after if after[path] != before[path]} == {missing, card, answers}
    assert answers.read_bytes() == said
    assert after.keys() == before.keys()
    assert {path: path.read_bytes() for path in folder.glob("table.*")} == tables
