from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import changed

from sensitune.backbones import BackboneSpec
from sensitune.cli._arguments import asked_run
from sensitune.data import DataSettings
from sensitune.errors import ArgumentError, ConfigError
from sensitune.runs import AllocationSettings, RunConfig, RunFolder, with_preset

FILE = "backbone: {name: m}\ndata: {source: d}\n"


def plain(**allocation: Any) -> RunConfig:
    return RunConfig(BackboneSpec("m"), DataSettings("d"), allocation=AllocationSettings(**allocation))


def settings_of(*options: str, output: Path) -> RunConfig:
    required = [] if "--config" in options else ["--model", "m", "--data", "d"]
    with asked_run([*required, *options, "--output", str(output)], command="run", description="") as asked:
        return RunFolder.open(asked.folder, asked.config).config


def test_what_did_best_is_the_default_of_a_new_run(tmp_path: Path) -> None:
    default = settings_of(output=tmp_path / "plain")
    assert default == settings_of("--preset", "best", output=tmp_path / "best") == with_preset(plain(), "best")


@pytest.mark.parametrize(("method", "default"), [("sparse", "paper"), ("spt-adapter", "best")])
def test_a_method_without_loras_takes_what_concerns_it(method: str, default: str, tmp_path: Path) -> None:
    paper = plain(method=method)
    best = changed(paper, recipe={"in_place_rate": 0.1})
    assert settings_of("--method", method, "--preset", "best", output=tmp_path / "best") == best
    assert settings_of("--preset", "paper", "--method", method, output=tmp_path / "paper") == paper
    expected = best if default == "best" else paper
    assert settings_of("--method", method, output=tmp_path / "default") == expected


@pytest.mark.parametrize("method", ["lora", "head", "random-sparse"])
def test_a_method_that_is_not_spt_has_no_preset(method: str, tmp_path: Path) -> None:
    assert settings_of("--method", method, output=tmp_path / "plain") == plain(method=method)
    with pytest.raises(ArgumentError, match=f"`--preset` belongs to the methods spt-lora.* not to {method}"):
        settings_of("--method", method, "--preset", "paper", output=tmp_path / "refused")


def test_the_published_settings_can_be_had(tmp_path: Path) -> None:
    assert settings_of("--preset", "paper", output=tmp_path / "paper") == plain()


def test_settings_in_a_file_are_meant_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "paper.yaml"
    path.write_text(FILE, encoding="utf-8")
    assert settings_of("--config", str(path), output=tmp_path / "run") == plain()
    assert settings_of(output=tmp_path / "run") == plain()


def test_a_preset_sets_its_settings_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    best = settings_of("--preset", "best", output=tmp_path / "best")
    assert (best.backbone.name, best.allocation.lora_start, best.recipe.in_place_rate) == ("m", "gradient", 0.1)
    assert changed(best, allocation={"lora_start": "random"}, recipe={"in_place_rate": 1.0}) == plain()
    other = settings_of("--preset", "best", "--recipe.in-place-rate", "0.5", output=tmp_path / "other")
    assert (other.allocation.lora_start, other.recipe.in_place_rate) == ("gradient", 0.5)


def test_a_preset_overrides_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"{FILE}allocation: {{budget: 5000}}\n", encoding="utf-8")
    found = settings_of("--config", str(path), "--preset", "best", output=tmp_path / "run")
    assert (found.allocation.budget, found.allocation.lora_start) == (5000, "gradient")


@pytest.mark.parametrize("inline", [True, False])
def test_a_peft_configuration_is_a_path_or_json(inline: bool, tmp_path: Path) -> None:
    text = '{"peft_type": "VERA", "r": 64, "base_model_name_or_path": "somewhere"}'
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    given = text if inline else str(tmp_path)
    found = settings_of("--method", "peft", "--allocation.peft", given, output=tmp_path / "run")
    assert found.allocation.peft == {"peft_type": "VERA", "r": 64}
    assert settings_of(output=tmp_path / "run") == found


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="invalid choice 'worst' for argument '--preset'"):
        settings_of("--preset", "worst", output=tmp_path / "run")
