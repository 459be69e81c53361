"""``sensitune advise`` on images and on texts: what it prints and what it writes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import yaml
from peft import LoraConfig
from safetensors.torch import save_file
from small_gguf import write_gguf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sensitune_command import main

WORDS = ["[PAD]", "[UNK]", *["red", "green", "blue", "sky", "grass", "rose"]]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "colours.jsonl"
    rows = [{"text": f"{colour} {thing}", "colour": colour} for colour in WORDS[2:5] for thing in WORDS[5:]] * 4
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def saved(model: BertModel | LlamaForCausalLM, folder: Path) -> Path:
    tokens = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def test_a_classifier_of_texts_gets_a_configuration_for_peft(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = saved(BertModel(BertConfig(vocab_size=8, **sizes)), tmp_path / "bert")
    command = [
        "advise",
        str(model),
        str(texts),
        "--label",
        "colour",
        "--budget",
        "400",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--num-batches", "4"]) == 0
    shown = capsys.readouterr().out
    assert "parameters and 51 of the head." in shown
    assert "stay under resampling" in shown
    config = LoraConfig.from_pretrained(str(tmp_path / "out"))
    assert config.task_type == "SEQ_CLS"
    assert set(config.modules_to_save or ()) == {"classifier"}


def test_a_language_model_gets_one_rank_for_llama_factory(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = saved(LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)), tmp_path / "llama")
    command = ["advise", str(model), str(texts), "--budget", "600", "--output", str(tmp_path / "out")]
    assert main([*command, "--for", "llama-factory", "--num-batches", "4"]) == 0
    written = yaml.safe_load((tmp_path / "out" / "llama_factory.yaml").read_text())
    assert (written["model_name_or_path"], written["lora_rank"], written["lora_alpha"]) == (str(model), 8, 8)
    assert all(name.startswith("model.layers.") for name in written["lora_target"].split(","))
    assert "of rank 8 to 8" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("gguf") is None, reason="pip install gguf")
def test_a_gguf_file_is_read_and_scored_in_float(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_gguf(tmp_path / "packed")
    command = ["advise", str(model), str(texts), "--budget", "600", "--output", str(tmp_path / "out")]
    assert main([*command, "--num-batches", "4"]) == 0
    assert "stay under resampling" in capsys.readouterr().out
    assert LoraConfig.from_pretrained(str(tmp_path / "out")).task_type == "CAUSAL_LM"


def test_images_are_scored_as_a_run_scores_them(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0, img_size=32).state_dict(), weights)
    command = ["advise", "test_vit", str(squares), "--budget", "2000", "--output", str(tmp_path / "out")]
    command += ["--checkpoint", str(weights), "--image-size", "32"]
    assert main([*command, "--num-batches", "4", "--batch-size", "4"]) == 0
    assert "stay under resampling" in capsys.readouterr().out
    assert (tmp_path / "out" / "scores" / "sensitivity.safetensors").exists()
    assert LoraConfig.from_pretrained(str(tmp_path / "out")).target_modules


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["vit_tiny_patch16_224", "photos", "--for", "trl"], "--for trl trains language models; photos holds images."),
        (["vit_tiny_patch16_224", "photos", "--num-batches", "1"], "--num-batches must be at least 2"),
        (["nowhere", "missing.jsonl"], "missing.jsonl cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["advise", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_transformers_cannot_load_is_one_sentence(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["advise", str(tmp_path / "empty"), str(texts), "--output", str(tmp_path / "out")]) == 2
    assert f"transformers cannot load {tmp_path / 'empty'}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
