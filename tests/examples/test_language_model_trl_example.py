"""TRL trains what was placed, as much as was said; so does the script that `sensitune advise --for trl` writes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file
from small_gguf import write_gguf

from sensitune.advice import TextData, load_language_model
from sensitune_command import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "language_model_trl.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # TRL's and what it still calls
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("trl", "gguf", "chatterbot_corpus")),
        reason="pip install trl gguf chatterbot-corpus",
    ),
]


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("language_model_trl", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_trl_trains_the_counted_parameters_and_peft_alone_loads_them(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "packed")
    results = load_example().main([str(model), "--budget", "900", "--steps", "8", "--texts", "80"])
    assert results["trained"] == results["placed"] <= 900
    assert results["after"] < results["before"]
    assert results["reloaded"] == pytest.approx(results["after"], abs=1e-5)


def test_the_script_that_advise_writes_trains_where_there_is_no_sensitune(tmp_path: Path) -> None:
    loaded, tokenizer = load_language_model(str(write_gguf(tmp_path / "packed")), TextData(("red rose",)))
    model = tmp_path / "model"
    loaded.save_pretrained(model)
    tokenizer.save_pretrained(model)
    rows = [{"text": f"{colour} {thing}"} for colour in ("red", "green") for thing in ("rose", "sky")] * 2
    texts = tmp_path / "train.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["advise", str(model), str(texts), "--for", "trl", "--budget", "900", "--num-batches", "2"]
    assert main([*command, "--batch-size", "2", "--output", str(tmp_path / "advice")]) == 0
    script = tmp_path / "advice" / "train_trl.py"
    written = 'SFTConfig(output_dir="trained")'
    assert written in script.read_text()
    # TRL takes bfloat16 unless told otherwise, and then a GPU.
    script.write_text(script.read_text().replace(written, 'SFTConfig("trained", use_cpu=True, bf16=False)'))
    blocked = "import sys; sys.modules['sensitune'] = None; exec(open('advice/train_trl.py').read())"
    subprocess.run([sys.executable, "-c", blocked], cwd=tmp_path, check=True, timeout=500)
    config = json.loads((tmp_path / "trained" / "adapter_config.json").read_text())
    ranks = json.loads((tmp_path / "advice" / "adapter_config.json").read_text())
    assert (config["rank_pattern"], config["r"]) == (ranks["rank_pattern"], ranks["r"])
    trained = sum(each.numel() for each in load_file(tmp_path / "trained" / "adapter_model.safetensors").values())
    assert 0 < trained <= 900
