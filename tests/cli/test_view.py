"""``sensitune view``, from a finished run to its page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from html_pages import data_of

from sensitune.allocation import Allocation, allocate, uniform_allocation
from sensitune.runs import Run, RunConfig, RunFolder, budget_ladder
from sensitune.sweeps import SweepConfig
from sensitune.training import Answers
from sensitune_command import main


def _shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The page that a command names, read."""
    assert main(["view", *map(str, arguments)]) == 0
    name, _, path = capsys.readouterr().out.strip().partition(": ")
    assert name == "page"
    return Path(path).read_text(encoding="utf-8")


def test_a_finished_run_and_an_allocation_file_get_a_page(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    html = _shown(capsys, folder)
    assert html == (folder / "report.html").read_text(encoding="utf-8")
    assert "9,000 (" in html
    assert "split_seed: 0" in html
    assert 'id="budget"' in html
    alone = _shown(capsys, folder / "allocation.safetensors", "--output", tmp_path / "mine.html")
    assert alone == (tmp_path / "mine.html").read_text(encoding="utf-8")
    assert 'id="budget"' not in alone


def test_a_page_shows_what_is_mistaken_and_goes_without_images_where_they_are_gone(
    settings: list[str], squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shutil.copytree(squares, tmp_path / "squares")
    folder = tmp_path / "run"
    elsewhere = [str(images) if each == str(squares) else each for each in settings]
    assert main(["run", *elsewhere, "--budget", "9_000", "--learning-rate", "1e-9", "--output", str(folder)]) == 0
    capsys.readouterr()
    answers = Answers.load(folder / "answers.safetensors")
    wrong = answers.confident_mistakes(12)
    assert wrong
    html = _shown(capsys, folder)
    data = data_of(folder / "report.html")
    assert sum(row["count"] for row in data["answers"]) == len(answers.labels)
    assert sum(row["count"] for row in data["answers"] if row["truth"] != row["said"]) == len(wrong)
    assert html.count('<img src="data:image/jpeg;base64,') == len(wrong)
    assert {site["stays"] for site in data["sites"] if "stays" in site} <= {step / 1e4 for step in range(10_001)}
    assert "data:image/jpeg" not in _shown(capsys, folder, "--no-images")
    shutil.rmtree(images)
    without = _shown(capsys, folder)
    assert "data:image/jpeg" not in without
    assert "The mistakes are shown without images: " in without
    (folder / "answers.safetensors").unlink()
    assert "Ask again: `sensitune evaluate" in _shown(capsys, folder).replace("&#39;", "'")


def test_several_runs_and_allocation_files_are_compared_beside_them(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "run"
    shutil.copytree(finished, folder)
    uniform_allocation(Allocation.load(folder / "allocation.safetensors").outline, rank=2).save(
        tmp_path / "runs" / "uniform.safetensors"
    )
    html = _shown(capsys, folder, tmp_path / "runs" / "uniform.safetensors")
    assert html == (tmp_path / "runs" / "comparison.html").read_text(encoding="utf-8")
    assert '<th scope="row">uniform</th>' in html
    assert '<th scope="row">allocation.rule</th>' in html
    shutil.copytree(folder, tmp_path / "runs" / "again")
    html = _shown(capsys, tmp_path / "runs")  # all runs of a folder
    assert "SPT-LoRA (again)</th>" in html
    assert "Settings that differ" not in html
    assert main(["view", str(folder), str(folder / ".." / "run")]) == 2
    assert "must name each run or allocation once" in capsys.readouterr().err


def test_a_run_finds_the_scores_that_it_shared_beside_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished, tmp_path / "compared" / "run")
    (folder.parent / "scores").mkdir()
    shared = folder.parent / "scores" / Run.load(folder).config.scoring.file_name
    (folder / "sensitivity.safetensors").rename(shared)
    assert 'id="budget"' in _shown(capsys, folder)
    shared.unlink()
    assert 'id="budget"' not in _shown(capsys, folder)


def test_a_sweeps_folder_becomes_its_table(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "tasks": {"colours": [str(squares)]},
        "methods": {"Head <b>only</b>": {"allocation": {"method": "head"}}},
        "seeds": [0, 1],
        "run": {
            "backbone": {"name": "vit_tiny_patch16_224", "pretrained": False, "image_size": 32, "num_blocks": 1},
            "recipe": {"epochs": 1, "warmup_share": 0.0},
            "compute": {"device": "cpu"},
        },
    }
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML too
    assert main(["sweep", "mine.yaml", "--output", "swept"]) == 0
    assert "as a page for the browser: sensitune view swept" in capsys.readouterr().out
    html = _shown(capsys, "swept")
    assert "2 of 2 runs are trained and tested." in html
    assert "Head &lt;b&gt;only&lt;/b&gt;" in html
    assert "mean ± standard deviation over 2 seeds" in html
    assert SweepConfig.from_yaml("swept/sweep.yaml") == SweepConfig.from_yaml("mine.yaml")
    Path("swept/sweep.yaml").unlink()
    assert main(["view", "swept"]) == 2
    assert "has no sweep.yaml" in capsys.readouterr().err
    assert main(["sweep", "mine.yaml", "--output", "swept", "--table"]) == 0
    assert Path("swept/sweep.yaml").exists()


def test_node_data_names_the_nodes_of_the_exported_backbone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "nodes.json", tmp_path / "page.html"
    assert main(["view", str(finished), "--output", str(page), "--no-images", "--model-explorer", str(file)]) == 0
    assert f"node data: {file}" in capsys.readouterr().out
    values = {name: found["value"] for name, found in json.loads(file.read_text())["results"].items()}
    run = Run.load(finished)
    backbone = run.ingredients.fresh_backbone()
    graph = torch.export.export(backbone.model.eval(), (torch.zeros(2, 3, 32, 32),), strict=False).graph
    assert values.keys() <= {node.name for node in graph.nodes}
    allocation = run.allocation()
    assert allocation is not None
    assert sum(value for name, value in values.items() if name.startswith("p_")) == allocation.trainable_params
    qkv = [row.params for row in allocation.table() if row.site.startswith("blocks.1.attn.qkv.weight")]
    assert values["p_blocks_1_attn_qkv_weight"] == sum(qkv)
    for arguments, complaint in (
        ([finished / "allocation.safetensors"], "needs one run folder alone"),
        ([finished, finished], "needs one run folder alone"),
    ):
        assert main(["view", *map(str, arguments), "--model-explorer", str(file)]) == 2
        assert complaint in capsys.readouterr().err
    assert main(["view", str(finished), "--model-explorer", "nodes.txt"]) == 2
    assert "must name a file that ends in .json. Got 'nodes.txt'" in capsys.readouterr().err


def test_the_sliders_budgets_are_placed_as_a_run_would_place_them(finished: Path) -> None:
    run = Run.load(finished)
    ladder, sensitivity = budget_ladder(run, steps=5), run.sensitivity()
    budgets = [each.trainable_params for each in ladder]
    assert budgets == sorted(budgets)
    assert 9_000 in budgets
    assert len(ladder) > 2
    for found in ladder:
        expected = allocate(sensitivity, budget=found.trainable_params, rank=run.config.allocation.rank)
        assert isinstance(expected, Allocation)
        assert found.table() == expected.table()


def test_a_run_that_is_not_finished_has_no_page_yet(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder.open(tmp_path / "run", config)
    assert main(["view", str(tmp_path / "run")]) == 2
    assert f"is not finished. Finish it: `sensitune train {tmp_path / 'run'}`." in capsys.readouterr().err
    assert not (tmp_path / "run" / "report.html").exists()
