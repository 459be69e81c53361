"""``sensitune advise``: where plain LoRAs should go, for other people's trainers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console

from sensitune.advice import (
    ONE_RANK,
    Advice,
    TrainerName,
    is_text,
    load_language_model,
    load_text,
    text_batches,
    write_for,
)
from sensitune.advice import advise as place
from sensitune.backbones import BackboneSpec
from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console, reporting, show_path
from sensitune.data import DataSettings
from sensitune.errors import ArgumentError
from sensitune.report import allocation_table
from sensitune.runs import Run, RunConfig, SensitivitySettings
from sensitune.sensitivity import estimate_sensitivity
from sensitune.training import Recipe

_LANGUAGE_ONLY = frozenset({"trl", "axolotl", "llama-factory"})


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(advise, arguments, command="advise")


def advise(
    model: tyro.conf.Positional[str],
    data: tyro.conf.Positional[str],
    /,
    *,
    budget: str = "0.5%",
    trainer: Annotated[TrainerName, tyro.conf.arg(name="for")] = "peft",
    rank: int | None = None,
    output: Path = Path("advice"),
    text: str = "text",
    label: str | None = None,
    num_batches: int = 16,
    batch_size: int = 8,
    max_length: int = 256,
    image_size: int | None = None,
    checkpoint: Path | None = None,
    seed: int = 0,
) -> None:
    """Say where a budget of plain LoRAs belongs and how far that depends on the data; write a trainer's configuration.

    Args:
        model: A transformers folder or a repository of the hub; for images also the name of a timm model, for texts a
            folder with a GGUF file.
        data: Images as `sensitune run` takes them; or texts: a .jsonl, .csv or .tsv file, or hf:OWNER/NAME.
        budget: What the LoRAs may have, the head not counted: a number, 0.4M, or 0.5%.
        trainer: Whose configuration to write: peft, trl, axolotl or llama-factory. The last one knows one rank (8).
        rank: One rank for every module; a rank of its own for each by default.
        output: Folder for the configuration and, of images, the scores.
        text: Column with the texts.
        label: Column with the classes; without it the model goes on with the texts.
        num_batches: Batches to score with; an even number is best.
        batch_size: Texts or images in a batch.
        max_length: Tokens per text.
        image_size: Side of the square input in pixels; None is the model's own.
        checkpoint: Local weight file of a timm model; its published weights by default.
        seed: Of the order of the texts and of a new head.

    Raises:
        ArgumentError: If the trainer does not train such a model, or there are no two batches.
    """
    console = make_console()
    if not is_text(data) and trainer in _LANGUAGE_ONLY:
        raise ArgumentError(f"--for {trainer} trains language models; {data} holds images. Use --for peft.")
    if num_batches < 2:
        raise ArgumentError(f"--num-batches must be at least 2, for each half places on its own. Got {num_batches}.")
    rank = 8 if rank is None and trainer in ONE_RANK else rank
    with reporting(console, always=True) as reporter:
        if is_text(data):
            texts = load_text(data, text=text, label=label)
            reporter.stage(f"Loading {model}")
            torch.manual_seed(seed)
            loaded, tokenizer = load_language_model(model, texts)
            reporter.stage(f"Scoring on {min(num_batches * batch_size, len(texts.texts))} texts")
            batches = text_batches(texts, tokenizer, batch_size=batch_size, max_length=max_length, seed=seed)
            sensitivity = estimate_sensitivity(
                loaded, batches, num_batches=num_batches, keep_halves=True, seed=seed, distributed=False
            )
            options = {"task_type": "CAUSAL_LM" if label is None else "SEQ_CLS"}
        else:
            config = RunConfig(
                BackboneSpec(model, checkpoint=None if checkpoint is None else str(checkpoint), image_size=image_size),
                DataSettings(data),
                recipe=Recipe(drop_path=0.0),  # not every model has one, and nothing is trained
                sensitivity=SensitivitySettings(num_batches=num_batches, batch_size=batch_size, keep_halves=True),
                seed=seed,
            )
            run = Run.open(output / "scores", config, reporter=reporter)
            with run.folder.writing():
                sensitivity = run.sensitivity()
            options = {}
    advice = place(sensitivity, budget=budget, rank=rank, **options)
    _show(console, advice)
    for path in write_for(trainer, advice, output, model=model):
        show_path(console, "written", path)


def _show(console: Console, advice: Advice) -> None:
    plan = advice.plan
    console.print(allocation_table(plan.allocation))
    console.print(allocation_table(plan.allocation, by="block"))
    ranks = plan.ranks.values()
    head = f" and {plan.head_params:,} of the head" if plan.head_params else ""
    console.print(
        f"{len(ranks)} modules of rank {min(ranks)} to {max(ranks)}: {plan.trainable_params:,} parameters{head}."
    )
    console.print(f"Adapter {advice.adapter_bytes / 1e6:.1f} MB, Adam's state {advice.optimizer_bytes / 1e6:.1f} MB.")
    console.print(
        f"A step multiplies {advice.step_arithmetic:.3f} times as much as one that trains nothing (computed)."
    )
    console.print(advice.sentence, soft_wrap=True)
