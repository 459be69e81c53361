"""What `advise` writes is read by the trainers' own code, out of their wheels."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from advised import of, scores
from transformers import HfArgumentParser
from wheels import fetch_wheel, module_of

from sensitune.advice import advise, write_for

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]


def test_axolotls_schema_takes_every_key_and_the_ranks(tmp_path: Path) -> None:
    schema = module_of(fetch_wheel("axolotl==0.19.0", tmp_path / "wheel"), "axolotl/utils/schemas/peft.py")
    advice = advise(scores([1, 1, 9, 1, 1, 4, 1, 1], [1, 1, 9, 1, 1, 4, 1, 1]), budget=700)
    (path,) = write_for("axolotl", advice, tmp_path, model="mine")
    written = yaml.safe_load(path.read_text())
    assert written.pop("base_model") == "mine"  # not of this part
    assert written["lora_rank_pattern"]
    assert set(written) <= set(schema.LoraConfig.model_fields)
    read = schema.LoraConfig.model_validate(written, strict=True)
    assert {name: getattr(read, name) for name in written} == written


def test_llama_factorys_arguments_take_every_key(tmp_path: Path) -> None:
    wheel = fetch_wheel("llamafactory==0.9.5", tmp_path / "wheel")
    arguments = module_of(wheel, "llamafactory/hparams/finetuning_args.py").FinetuningArguments
    (path,) = write_for("llama-factory", of([1, 1, 9, 1, 1, 8, 1, 1]), tmp_path, model="mine")
    written = yaml.safe_load(path.read_text())
    assert written.pop("model_name_or_path") == "mine"  # not of this part
    (read,) = HfArgumentParser(arguments).parse_dict(written)  # which refuses keys that it does not know
    assert (read.finetuning_type, read.lora_rank, read.lora_alpha) == ("lora", 4, 4)
    assert (read.lora_target, read.additional_target) == (["body.2", "body.5"], ["head"])
