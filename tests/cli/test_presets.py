from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sensitune.cli._arguments import parse_run
from sensitune.errors import ArgumentError
from sensitune.runs import PRESETS, Method, RunConfig, RunFolder, with_preset


def settings_of(*options: str, output: Path) -> RunConfig:
    required = [] if "--config" in options else ["--model", "m", "--data", "d"]
    asked = parse_run([*required, *options, "--output", str(output)], command="run", description="")
    return RunFolder.open(asked.folder, asked.settings).config


def test_what_did_best_is_the_default_of_a_new_run(tmp_path: Path) -> None:
    plain = settings_of(output=tmp_path / "plain")
    assert (
        plain == settings_of("--preset", "best", output=tmp_path / "best") == with_preset(RunConfig("m", "d"), "best")
    )


@pytest.mark.parametrize(("method", "default"), [("sparse", "paper"), ("spt-adapter", "best")])
def test_a_method_without_loras_takes_what_concerns_it(method: Method, default: str, tmp_path: Path) -> None:
    plain = RunConfig("m", "d", method)
    best = replace(plain, recipe=replace(plain.recipe, in_place_rate=0.1))
    assert settings_of("--method", method, "--preset", "best", output=tmp_path / "best") == best
    assert settings_of("--preset", "paper", "--method", method, output=tmp_path / "paper") == plain
    expected = best if default == "best" else plain
    assert settings_of("--method", method, output=tmp_path / "default") == expected


@pytest.mark.parametrize("method", ["lora", "head", "random-sparse"])
def test_a_method_that_is_not_spt_has_no_preset(method: Method, tmp_path: Path) -> None:
    assert settings_of("--method", method, output=tmp_path / "plain") == RunConfig("m", "d", method)
    with pytest.raises(ArgumentError, match=f"`preset` belongs to the methods spt-lora.* not to {method}"):
        settings_of("--method", method, "--preset", "paper", output=tmp_path / "refused")


def test_the_published_settings_can_be_had(tmp_path: Path) -> None:
    assert settings_of("--preset", "paper", output=tmp_path / "paper") == RunConfig("m", "d")


def test_settings_in_a_file_are_meant_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "paper.yaml"
    path.write_text("model: m\ndata: d\n", encoding="utf-8")
    assert settings_of("--config", str(path), output=tmp_path / "run") == RunConfig("m", "d")
    assert settings_of(output=tmp_path / "run") == RunConfig("m", "d")


def test_a_preset_sets_its_settings_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    best = settings_of("--preset", "best", output=tmp_path / "best")
    assert (best.model, best.lora_start, best.recipe.in_place_rate) == ("m", "gradient", 0.1)
    changes = {"lora_start": "random", "recipe": replace(best.recipe, in_place_rate=1.0)}
    assert replace(best, **changes) == RunConfig("m", "d")
    other = settings_of("--preset", "best", "--recipe.in-place-rate", "0.5", output=tmp_path / "other")
    assert (other.lora_start, other.recipe.in_place_rate) == ("gradient", 0.5)


def test_a_preset_overrides_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndata: d\nbudget: 5000\n", encoding="utf-8")
    found = settings_of("--config", str(path), "--preset", "best", output=tmp_path / "run")
    assert (found.budget, found.lora_start) == (5000, PRESETS["best"]["lora_start"])


def test_an_unknown_preset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings_of("--preset", "worst", output=tmp_path / "run")
    assert "worst" in capsys.readouterr().err
