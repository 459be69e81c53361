from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from sensitune.errors import RunFolderError
from sensitune.runs import METHODS, RunConfig
from sensitune.sensitivity import Sensitivity
from sensitune.training import AdapterManifest
from sensitune_command import COMMANDS, main

SMALL = {
    "backbone": {"name": "vit_tiny_patch16_224", "pretrained": False, "image_size": 32, "num_blocks": 2},
    "allocation": {"budget": 100},
}


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"usage: sensitune {command}" in capsys.readouterr().out


def test_every_setting_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--help"])
    shown = capsys.readouterr().out
    assert "Trainable parameters, the head not counted" in shown
    assert "Peak learning rate of AdamW" in shown
    assert "squared_gradient" in shown


def test_the_settings_that_everybody_uses_have_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--help"])
    flags = set(re.findall(r"(--[a-z][a-z.-]*)", capsys.readouterr().out))
    short = "model head data method budget rank epochs batch-size learning-rate seed output device config preset help"
    short += " quiet json"
    assert {flag for flag in flags if "." not in flag} == {f"--{name}" for name in short.split()}
    assert {"--backbone.image-size", "--data.max-train", "--allocation.alpha", "--recipe.weight-decay"} <= flags
    assert "--compute.num-workers" in flags
    assert "--recipe.epochs" not in flags


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "5", "--allocation.tau", "3"], "Give `--budget` or `--allocation.tau`, not both. Got 5 and 3."),
        (["--epochs", "0"], "`--epochs` must be at least 1 where the head starts at random. Got 0"),
        (["--data.max-train", "0"], "`--data.max-train` must be a whole number of at least 1"),
        (["--data.max-train", "5", "--data.shots", "2"], "Give `--data.max-train` or `--data.shots`, not both."),
        (["--method", "head", "--budget", "5"], "`--budget` belongs to the methods spt-lora"),
        (["--method", "peft"], "The method peft needs `--allocation.peft`"),
        (["--method", "peft", "--allocation.peft", "{"], "is not JSON"),
    ],
)
def test_a_message_names_the_flag_as_it_was_typed(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--model", "m", "--data", "d", *options, "--output", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_a_message_names_the_key_of_a_file_and_the_flag_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("backbone: {name: m}\ndata: {source: d}\nallocation: {budget: 400}\n")
    assert main(["run", "--config", str(file), "--allocation.tau", "3", "--output", str(tmp_path / "run")]) == 2
    assert "Give `allocation.budget` or `--allocation.tau`, not both. Got 400 and 3." in capsys.readouterr().err


def test_a_budget_that_cannot_be_spent_is_named_by_its_flag_or_key(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *settings, "--budget", "100", "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: `--budget` must be at least")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    values = RunConfig.from_dict(SMALL | {"data": {"source": settings[settings.index("--data") + 1]}}).to_dict()
    (tmp_path / "run" / "run.yaml").write_text(json.dumps(values))
    # Now the run folder's file says so.
    assert main(["run", "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: `allocation.budget` must be at least")


def test_every_method_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--help"])
    shown = "".join(capsys.readouterr().out.split())
    assert f"--method{{{','.join(METHODS)}}}" in shown.replace("│", "")


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sensitune 0.")


def test_an_unknown_command_gets_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert (
        capsys.readouterr().err
        == "error: 'trian' is not a command. The closest one is 'train'; see `sensitune --help`.\n"
    )


def test_the_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SENSITUNE_DEBUG", "1")
    with pytest.raises(RunFolderError, match="is not a run folder"):
        main(["train", str(tmp_path)])


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sensitune_command._dispatch", interrupt)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "Interrupted. The same command goes on where it stopped.\n"


def test_run_shows_its_tables_and_where_everything_is(
    finished: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *settings, "--budget", "9_000", "--output", str(finished)]) == 0
    captured = capsys.readouterr()
    assert "9,000" in captured.out
    assert "SPT-LoRA" in captured.out
    assert re.search(r"^\d+ of \d+ modules stay under resampling: chosen by either half", captured.out, re.MULTILINE)
    assert f"adapter (last epoch): {finished / 'adapter'}\n" in captured.out
    assert f"report: {finished / 'report.md'}\n" in captured.out
    assert "\x1b" not in captured.out
    assert "%|" not in captured.err


def test_run_ends_with_the_result_the_report_and_how_to_predict(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--output", str(finished)]) == 0
    result, report, predict = capsys.readouterr().out.splitlines()[-3:]
    accuracy = json.loads((finished / "training.json").read_text())["test_accuracy_last"]
    share = 9_000 / AdapterManifest.load(finished / "adapter").origin.backbone_params
    assert result.startswith(f"result: test accuracy {accuracy:.1%}; 9,000 parameters ({share:.2%} of the backbone)")
    assert report == f"report: {finished / 'report.md'}"
    assert predict == f"predict: sensitune predict {finished / 'adapter'} IMAGES"
    assert (finished / "report.md").is_file()


def test_a_quiet_run_writes_nothing_on_standard_output(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--output", str(finished), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_a_quiet_run_still_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--model", "m", "--data", str(tmp_path / "none"), "--output", str(tmp_path / "run"), "--json"]
    assert main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")


def test_json_is_one_object_and_nothing_else(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command = ["run", *settings, "--epochs", "1", "--budget", "9_000", "--output", str(folder), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    written = json.loads((folder / "training.json").read_text())
    assert found["test_accuracy"] == written["test_accuracy_last"]
    assert found["trainable_params"] == 9_000
    assert found["trainable_params_with_head"] == written["trained_params"]
    assert (found["seed"], found["device"], found["last_epoch"]) == (0, "cpu", 1)
    assert found["adapter"] == str(folder / "adapter")
    assert Path(found["adapter"], "adapter_config.json").is_file()
    assert Path(found["report"]).is_file()


def test_run_writes_figures_and_tables(finished: Path) -> None:
    names = {path.name for path in (finished / "figures").iterdir()}
    assert {"comparison.csv", "sensitive_heat_map.png", "trainable_by_operation.svg"} <= names


def test_a_run_of_other_settings_is_refused(
    finished: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *settings, "--budget", "1%", "--output", str(finished)]) == 2
    assert "holds a run with other settings: `--budget` is 9000, not '1%'" in capsys.readouterr().err


def test_an_existing_run_needs_no_settings(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--output", str(finished)]) == 0
    assert "9,000" in capsys.readouterr().out


def test_a_configuration_file_is_overridden_by_options(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(finished / "run.yaml"), "--output", str(tmp_path / "run"), "--budget", "0.5%"]
    assert main(["sensitivity", *arguments]) == 0
    assert "890,112 parameters at 34 sites scored." in capsys.readouterr().out
    expected = RunConfig.from_yaml(finished / "run.yaml")
    found = RunConfig.from_yaml(tmp_path / "run" / "run.yaml")
    assert found.allocation.budget == "0.5%"
    assert found.recipe == expected.recipe


def test_an_unknown_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("backbone: {name: m}\ndata: {source: d}\nallocation: {bugdet: 4}\n")
    assert main(["run", "--config", str(tmp_path / "c.yaml")]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'c.yaml'}: `allocation.bugdet` is not a setting. The closest one is `allocation.budget`.\n"
    )


def test_the_stages_one_by_one(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["sensitivity", *settings, "--budget", "0.009M", "--output", run]) == 0
    assert main(["evaluate", run]) == 2
    assert f"has no adapter yet. Train it first: `sensitune train {run}`" in capsys.readouterr().err
    assert main(["allocate", run]) == 0
    assert "9,000" in capsys.readouterr().out
    assert main(["train", run, "--device", "cpu"]) == 0
    assert "SPT-LoRA" in capsys.readouterr().out
    assert main(["evaluate", run, "--split", "validation", "--weights", "chosen"]) == 0
    assert "validation accuracy" in capsys.readouterr().out


def test_a_method_that_places_nothing_goes_through_all_stages(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["run", *settings, "--method", "full", "--output", run]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"Full fine-tuning +1,038,912 +1,039,491 +100\.00%", shown)
    assert "is trained too and not counted" not in shown  # the allocation's table
    assert (tmp_path / "run/figures/comparison.csv").exists()
    assert not (tmp_path / "run/allocation.safetensors").exists()
    assert main(["allocate", run]) == 0
    assert capsys.readouterr().out == f"The method full places nothing; `sensitune train {run}` goes on.\n"


def test_predictions_are_csv(finished: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(squares / "red" / "0.png"), str(squares / "blue" / "1.png")]
    assert main(["predict", str(finished / "adapter"), *files, "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["file"] for row in rows] == files
    assert list(rows[0]) == ["file", "class", "probability", "blue", "green", "red"]
    assert float(rows[0]["probability"]) == max(float(rows[0][name]) for name in ("blue", "green", "red"))
    assert (
        main(["predict", str(finished / "adapter"), *files, "--output", str(tmp_path / "p.csv"), "--device", "cpu"])
        == 0
    )
    assert (tmp_path / "p.csv").read_text() == text


def test_files_with_names_that_others_would_obey_are_predicted_all_the_same(
    finished: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.png", "\x1b[2J.png", os.fsdecode(b"caf\xe9.png")]
    for name in names:
        shutil.copy(squares / "red" / "0.png", name)
    assert main(["predict", str(finished / "adapter"), *names, "--output", "p.csv", "--device", "cpu"]) == 0
    with (tmp_path / "p.csv").open(encoding="utf-8") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["'=1+1.png", r"\x1b[2J.png", r"caf\xe9.png"]
    assert main(["predict", str(finished / "adapter"), *names, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == (tmp_path / "p.csv").read_text(encoding="utf-8")


def test_an_unreadable_image_is_named(
    finished: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    arguments = ["predict", str(finished / "adapter"), str(squares / "red" / "0.png"), str(broken), "--device", "cpu"]
    assert main(arguments) == 2
    assert f"error: The image {broken} cannot be read" in capsys.readouterr().err
    assert main([*arguments, "--skip-unreadable"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert captured.err == f"skipped {broken}: it cannot be read\n"


def test_merge_writes_a_plain_checkpoint(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "merged.safetensors"
    assert main(["merge", str(finished / "adapter"), "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"merged checkpoint: {path}\n"
    assert main(["merge", str(finished / "adapter"), "--output", str(tmp_path / "merged.pth")]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err


def test_sites_says_what_is_ranked_trained_and_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", "vit_tiny_patch16_224", "--num-blocks", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Ranked: 34 sites, 890,112 parameters" in shown
    assert "cls_token" in shown
    assert "position embedding" in shown
    assert main(["sites", "vit_tiny_patch16_224", "--num-blocks", "1", "--every"]) == 0
    assert "blocks.0.attn.qkv.weight[q]" in capsys.readouterr().out


def test_the_head_can_be_named(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", "vit_tiny_patch16_224", "--num-blocks", "2", "--head", "norm", "head"]) == 0
    shown = capsys.readouterr().out
    assert "Ranked: 32 sites, 889,728 parameters" in shown
    assert shown.count("2,314 parameters in the head") == 2
    run = ["sensitivity", *settings, "--output", str(tmp_path / "run")]
    assert main([*run, "--head", "fc"]) == 2
    assert "`head` names 'fc', which is no module of VisionTransformer" in capsys.readouterr().err
    assert main([*run, "--head", "norm", "head"]) == 0
    assert Sensitivity.load(tmp_path / "run" / "sensitivity.safetensors").outline.head == ("norm", "head")


def test_an_empty_class_folder_is_one_sentence(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
    arguments = [*settings, "--data", str(tmp_path / "images"), "--output", str(tmp_path / "run")]
    assert main(["run", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")
