"""docs/files.md against what commands really write: every file is named there, and every key."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from sensitune.runs._choice import Choice, Trial
from sensitune_command import main

PAGE = (Path(__file__).parents[2] / "docs" / "files.md").read_text(encoding="utf-8")
NAMED = {word for code in re.findall(r"`([^`\n]+)`", PAGE) for word in code.split("/")}
ANY_FIGURE = re.compile(r"figures/\w+\.(csv|png|svg)")


def about(start: str) -> str:
    """The paragraph, or the row of a table, that begins so."""
    (text,) = re.findall(rf"^{re.escape(start)}.*?$(?=\n\n|\n\||\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return text


def words(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


def header(path: Path, key: str) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert set(metadata) - {"format"} == {key, "crc32"}
    return dict(json.loads(metadata[key]))


@pytest.fixture(scope="module")
def written(finished: Path, settings: list[str], squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was tested again and viewed, what is made of its adapter, and a small sweep."""
    pytest.importorskip("altair", reason="needs altair: the extra `page`")
    folder = tmp_path_factory.mktemp("written")
    shutil.copytree(finished, folder / "run")
    adapter = str(folder / "run" / "adapter")
    sweep = {
        "tasks": {"colours": [str(squares)]},
        "methods": {"SPT-LoRA": {}},
        "seeds": [0],
        "run": {
            "backbone": {"name": "vit_tiny_patch16_224", "pretrained": False, "image_size": 32, "num_blocks": 2},
            "sensitivity": {"num_batches": 2, "batch_size": 4},
            "allocation": {"budget": 9000, "rank": 4, "method": "spt-lora"},
            "recipe": {"epochs": 1, "batch_size": 8},
            "compute": {"device": "cpu"},
        },
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    photo = str(next(squares.rglob("*.png")))
    for command in (
        ["evaluate", str(folder / "run")],
        ["view", str(folder / "run")],
        ["predict", adapter, photo, "--output", str(folder / "classes.csv")],
        ["merge", adapter, "--output", str(folder / "merged.safetensors")],
        ["export", adapter, "--allow-dropping", "--output", str(folder / "lora")],
        ["sweep", str(folder / "sweep.yaml"), "--output", str(folder / "sweep")],
    ):
        assert main(command) == 0
    return folder


def test_every_file_that_is_written_is_named(written: Path) -> None:
    for root in ("run", "lora", "sweep"):
        found = [path.relative_to(written / root) for path in (written / root).rglob("*") if path.is_file()]
        assert len(found) > 2
        for path in found:
            assert path.name in NAMED or ANY_FIGURE.fullmatch(path.as_posix()), path
    own = {path.name for path in (written / "run").iterdir()} - {"sensitivity.safetensors"}
    assert {"adapter", "figures", "report.html", "evaluation.json"} < own <= NAMED


@pytest.mark.parametrize(
    ("file", "values"),
    [("training.json", set()), ("evaluation.json", {"last", "chosen"}), ("metrics.jsonl", set())],
)
def test_the_keys_of_a_runs_numbers_are_those_on_the_page(written: Path, file: str, values: set[str]) -> None:
    text = (written / "run" / file).read_text(encoding="utf-8")
    keys = set(json.loads(text.splitlines()[0] if file.endswith("l") else text))
    assert words(about(f"`{file}` has")) - {file} - values == keys


def test_the_keys_of_a_choice_are_those_on_the_page() -> None:
    keys = {each.name for cls in (Choice, Trial) for each in fields(cls)}
    assert words(about("`choice.json` has")) - {"choice.json"} == keys


def test_the_settings_have_the_groups_on_the_page(written: Path) -> None:
    keys = set(yaml.safe_load((written / "run" / "run.yaml").read_text(encoding="utf-8")))
    assert keys < words(about("`run.yaml` holds"))


def test_the_results_of_a_sweep_have_the_keys_on_the_page(written: Path) -> None:
    results = json.loads((written / "sweep" / "results.json").read_text(encoding="utf-8"))
    assert words(about("| `results.json`")) - {"results.json"} == set(results) | set(results["runs"][0])


def test_the_manifest_of_an_adapter_has_the_keys_on_the_page(written: Path) -> None:
    manifest = json.loads((written / "run" / "adapter" / "sensitune.json").read_text(encoding="utf-8"))
    named = words(about("`sensitune.json` has")) - {"sensitune.json"}
    assert set(manifest) | set(manifest["origin"]) == named


def test_the_documents_of_tensor_files_have_the_keys_on_the_page(written: Path) -> None:
    scores = written / "run" / "sensitivity.safetensors"
    for path in (
        scores,
        written / "run" / "allocation.safetensors",
        written / "run" / "lora_start.safetensors",
        written / "run" / "answers.safetensors",
    ):
        document = header(path, "sensitune")
        kind = document.pop("kind")
        with safe_open(path, framework="pt") as file:
            assert set(document.pop("tensors")) == set(file.keys())
        assert set(document) <= words(about(f"| `{kind}`"))
        assert bool(document) == (kind != "LoRA start")
    outline = header(scores, "sensitune")["outline"]
    assert set(outline) | set(outline["sites"][0]) <= words(about("`outline` is"))
    assert "versions" in header(scores, "sensitune")["metadata"]
    merged = header(written / "merged.safetensors", "sensitune_checkpoint")
    assert set(merged) <= words(about("`sensitune merge`") + about("The header's `sensitune_checkpoint`"))


def test_tensors_have_the_types_and_names_on_the_page(written: Path) -> None:
    scores = load_file(written / "run" / "sensitivity.safetensors")
    types = {name.rpartition(":")[0] or "score": tensor.dtype for name, tensor in scores.items()}
    halves = dict.fromkeys(("first half", "second half"), torch.bfloat16)
    assert types == {"score": torch.float32, "gradient": torch.float32} | halves
    assert {tensor.dtype for tensor in load_file(written / "run" / "allocation.safetensors").values()} == {torch.int32}
    tensors = load_file(written / "run" / "adapter" / "adapter_model.safetensors")
    roles = {found[1] for name in tensors if (found := re.search(r"\.spt_(\w+)\.", name))}
    assert {"down", "up", "sparse", "indices", "whole"} == roles <= NAMED
    assert {tensor.dtype for name, tensor in tensors.items() if ".spt_indices." in name} == {torch.int32}
    assert any(name.endswith("head.weight") for name in tensors)


def test_predictions_begin_with_the_columns_on_the_page(written: Path) -> None:
    with (written / "classes.csv").open(encoding="utf-8", newline="") as file:
        columns = next(csv.reader(file))
    assert columns[:3] == ["file", "class", "probability"]
    assert set(columns[:3]) < words(about("`sensitune predict`"))
