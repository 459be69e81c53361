"""An adapter of a run as plain LoRA: the same predictions, or what is lost is measured and said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_runs import changed

from sensitune.errors import ArgumentError, ExportError
from sensitune.runs import Run, RunConfig, RunFolder, export, predict
from sensitune.training import read_result


@pytest.fixture(scope="module")
def servable(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = Run.open(tmp_path_factory.mktemp("runs") / "servable", changed(config, allocation={"servable": True}))
    run.train()
    return run.folder


def test_a_run_that_is_to_be_served_is_exported_with_the_same_predictions(
    servable: RunFolder, images: Path, tmp_path: Path
) -> None:
    adapter = servable.training.adapter
    found = export(adapter, tmp_path / "lora")
    assert (dict(found.lora.dropped), found.accuracy_before, found.not_measured) == ({}, None, None)
    assert found.lora.saved_modules == ("head",)
    files = sorted(images.rglob("*.png"))[:6]
    first, second = predict(adapter, files), predict(tmp_path / "lora", files)
    assert second.class_names == first.class_names
    torch.testing.assert_close(second.probabilities, first.probabilities, rtol=0, atol=1e-5)
    assert first.probabilities.std() > 0.01


def test_its_allocation_holds_matrices_alone_and_costs_the_budget(servable: RunFolder) -> None:
    allocation = Run(servable).allocation()
    assert allocation is not None
    assert allocation.trainable_params == 9_000
    assert {allocation.site(site).kind for site in (*allocation.structured, *allocation.sparse)} == {"matrix"}
    assert (allocation.vectors, allocation.always_trained) == ((), ())


def test_what_is_left_out_is_measured_on_the_runs_test_split(finished: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not the weight of a linear layer: `cls_token`"):
        export(finished.training.adapter, tmp_path / "lora")
    found = export(finished.training.adapter, tmp_path / "lora", allow_dropping=True)
    result = read_result(finished.path)
    assert result is not None
    assert "cls_token" in found.lora.dropped
    assert found.accuracy_before == result.test_accuracy_last
    assert found.accuracy_after is not None
    assert found.not_measured is None


def test_an_adapter_that_has_left_its_run_is_exported_without_accuracies(finished: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(finished.training.adapter, tmp_path / "adapter")
    found = export(tmp_path / "adapter", tmp_path / "lora", allow_dropping=True)
    assert found.accuracy_before is None
    assert "is not a run folder" in str(found.not_measured)


def test_an_adapter_is_not_written_over_itself_or_over_other_files(servable: RunFolder, tmp_path: Path) -> None:
    adapter = servable.training.adapter
    with pytest.raises(ArgumentError, match="`output` must be another folder than the adapter"):
        export(adapter, adapter)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArgumentError, match=r"mine holds `thesis.txt`, which no plain LoRA has, and is not replaced"):
        export(adapter, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    export(adapter, tmp_path / "lora")
    export(adapter, tmp_path / "lora", uniform_rank=True)  # an older export is
