"""The pages for users: their Python runs, block after block, and the commands and options that they show exist."""

from __future__ import annotations

import functools
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import get_peft_model
from safetensors.torch import load_file

import sensitune
from sensitune_command import COMMANDS, main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OPTION = re.compile(r"--[a-z][\w.-]*")


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def run(page: str, names: dict[str, Any], stand_ins: dict[str, str]) -> dict[str, Any]:
    """Run a page's blocks one after the other; what stands for a model of a hub must have been on the page."""
    text = "\n".join(blocks(page))
    for written, stand_in in stand_ins.items():
        assert written in text
        text = text.replace(written, stand_in)
    exec(compile(text, page, "exec"), names)
    return names


def test_your_own_model_runs_from_scores_to_an_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("own_model.md", {"__name__": "own_model"}, {})
    assert names["allocation"].trainable_params == 200
    trained = sum(each.numel() for each in names["tuned"].parameters() if each.requires_grad)
    assert trained == 200 + names["allocation"].head_params
    assert Path("adapter", "adapter_config.json").is_file()
    shown = capsys.readouterr().out
    assert "body.0.weight" in shown
    assert "body.2" not in shown
    assert "head" not in shown


def test_the_example_of_the_method_gives_what_stands_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    run("method.md", {}, {})
    page = (DOCS / "method.md").read_text(encoding="utf-8")
    places, cost = capsys.readouterr().out.splitlines()
    assert f"prints `{places}` and `{cost}`" in page


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning")
def test_a_language_model_runs_from_scores_to_an_adapter() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    tokens = torch.randint(1, 50, (2, 2, 8))
    small = LlamaForCausalLM(config)
    names = run(
        "language_models.md",
        {
            "small": small,
            "batches": [{"input_ids": each, "labels": each} for each in tokens],
            "rows": [{"input_ids": each, "labels": each} for each in tokens.flatten(0, 1)],
        },
        {'AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")': "small", '"0.5%"': "500"},
    )
    assert names["allocation"].trainable_params == 500
    assert names["allocation"].head_params == 0
    assert not {name for name in names["sensitivity"].scores if "embed_tokens" in name or "lm_head" in name}
    assert names["trainer"].state.global_step == 1
    saved = load_file("adapter/adapter_model.safetensors")
    trained = [value for name, value in saved.items() if ".spt_up." in name or ".spt_sparse." in name]
    assert trained
    assert all(value.any() for value in trained)


def test_the_preset_in_a_loop_of_ones_own_starts_along_the_gradient_and_is_slower_in_place() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    batches = [(torch.randn(2, 3, 32, 32), torch.tensor([0, index % 3])) for index in range(16)]
    given = {"sensitune": sensitune, "torch": torch, "get_peft_model": get_peft_model, "model": model}
    names = run("accuracy.md", given | {"batches": batches}, {'"0.4M"': "9_000"})
    assert names["allocation"].trainable_params == 9_000
    assert {group["lr"] for group in names["optimizer"].param_groups} == {1e-3, 1e-4}
    sites = names["tuned"].base_model.site_parameters()
    slow = {id(each) for group in names["groups"] if group.get("lr") == 1e-4 for each in group["params"]}
    assert {role for roles in sites.values() for role, each in roles.items() if id(each) in slow} == {"sparse", "whole"}


@functools.cache
def help_of(command: str) -> str:
    with redirect_stdout(io.StringIO()) as output:
        assert main([command, "--help"]) == 0
    return output.getvalue()


@pytest.mark.parametrize("page", ["README.md", *sorted(str(each.relative_to(ROOT)) for each in DOCS.rglob("*.md"))])
def test_every_line_to_type_names_a_command_and_options_of_that_command(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for command, rest in re.findall(r"^ {4}.*?\bsensitune ([a-z]+)\b(.*)$", text, re.MULTILINE):
        assert command in COMMANDS, command
        typed = rest.partition(" #")[0]
        assert set(OPTION.findall(typed)) <= set(OPTION.findall(help_of(command))), (command, rest)


@pytest.mark.parametrize("page", ["start.md", "own_images.md", "choosing.md", "errors.md", "method.md"])
def test_every_command_and_option_that_the_page_shows_exists(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8").replace("\\\n", " ")
    code = [*re.findall(r"^    (sensitune .*)$", text, re.MULTILINE), *re.findall(r"`([^`\n]*)`", text)]
    commands = {found[1] for part in code if (found := re.match(r"sensitune (\w+)", part))}
    assert commands <= set(COMMANDS)
    for command in commands | {"run"}:
        assert main([command, "--help"]) == 0
    offered = set(OPTION.findall(capsys.readouterr().out))
    assert {option for part in code for option in OPTION.findall(part)} <= offered


def test_the_readme_is_a_door() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_the_readme_leads_to_every_page_or_to_the_site(page: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"(docs/{page})" in readme or page in {"index.md", "contributing.md"}


def test_the_figures_of_the_readme_stand_on_the_pages_too() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    accuracy, speed = ((DOCS / name).read_text(encoding="utf-8") for name in ("accuracy.md", "speed.md"))
    for figure in ("4.2 points ahead", "1.4 to 7.3", "0.4 to 5.9"):
        assert figure in readme.replace("\n", " ")
        assert figure in accuracy.replace("\n", " ")
    assert "1.05 times" in readme
    assert "| SPT-LoRA published | 380,909 | 3.82 | 1.050 " in speed
