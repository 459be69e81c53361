"""The configuration that a trainer reads, written from a plan."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import yaml

from sensitune._files import atomic_write
from sensitune.advice._advice import Advice
from sensitune.errors import ArgumentError

TrainerName: TypeAlias = Literal["peft", "trl", "axolotl", "llama-factory"]


def write_for(trainer: TrainerName, advice: Advice, folder: str | os.PathLike[str], *, model: str) -> list[Path]:
    """Write the files that a trainer starts from.

    Args:
        trainer: ``"peft"``: ``adapter_config.json``, which `peft.LoraConfig.from_pretrained` reads. ``"trl"``: the
            same, and a script that hands it to `trl.SFTTrainer`. ``"axolotl"`` and ``"llama-factory"``: the LoRA part
            of their YAML file; the second knows one rank for all modules.
        advice: What to write.
        folder: Where; made if it is missing.
        model: What the trainer is to load.

    Returns:
        The files.

    Raises:
        ArgumentError: If the trainer cannot say what is planned (several ranks, modules that have no names of their own
            by its rules), or none of its name is known.
    """
    if trainer not in TRAINERS:
        raise ArgumentError(f"`trainer` must be one of {', '.join(TRAINERS)}. Got {trainer!r}.")
    if trainer in ONE_RANK and len(set(advice.plan.ranks.values())) > 1:
        raise ArgumentError(f"{trainer} knows one rank for all modules. Give `advise` a `rank`, such as 8.")
    if trainer == "llama-factory" and isinstance(_targets(advice), str):
        raise ArgumentError(
            "llama-factory takes names of modules alone, and one of those chosen also ends the name of another. "
            "Choose among others with `allowed`, or take another trainer."
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    return TRAINERS[trainer](advice, Path(folder), model)


def _peft(advice: Advice, folder: Path, model: str) -> list[Path]:
    config = advice.plan.config
    config.base_model_name_or_path = model
    config.save_pretrained(os.fspath(folder))
    return [folder / "adapter_config.json"]


def _trl(advice: Advice, folder: Path, model: str) -> list[Path]:
    script = folder / "train_trl.py"
    _write(script, _TRL.format(model=model, folder=os.fspath(folder)))
    return [*_peft(advice, folder, model), script]


def _axolotl(advice: Advice, folder: Path, model: str) -> list[Path]:
    config = advice.plan.config
    return _yaml(
        folder / "axolotl.yaml",
        {
            "base_model": model,
            "adapter": "lora",
            "lora_r": config.r,
            "lora_alpha": config.lora_alpha,
            "lora_target_modules": _targets(advice),
            **({"lora_rank_pattern": dict(config.rank_pattern)} if config.rank_pattern else {}),
            **({"lora_alpha_pattern": dict(config.alpha_pattern)} if config.alpha_pattern else {}),
            **({"lora_modules_to_save": list(config.modules_to_save)} if config.modules_to_save else {}),
        },
    )


def _llama_factory(advice: Advice, folder: Path, model: str) -> list[Path]:
    config = advice.plan.config
    return _yaml(
        folder / "llama_factory.yaml",
        {
            "model_name_or_path": model,
            "finetuning_type": "lora",
            "lora_rank": config.r,
            "lora_alpha": config.lora_alpha,
            "lora_target": ",".join(_targets(advice)),
            **({"additional_target": ",".join(config.modules_to_save)} if config.modules_to_save else {}),
        },
    )


def _targets(advice: Advice) -> str | list[str]:
    targets = advice.plan.config.target_modules
    return targets if isinstance(targets, str) else sorted(targets or ())


def _yaml(path: Path, values: dict[str, Any]) -> list[Path]:
    _write(path, "# The LoRA part: add data, learning rate and the rest.\n" + yaml.safe_dump(values, sort_keys=False))
    return [path]


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


TRAINERS: Final[dict[str, Callable[[Advice, Path, str], list[Path]]]] = {
    "peft": _peft,
    "trl": _trl,
    "axolotl": _axolotl,
    "llama-factory": _llama_factory,
}
ONE_RANK: Final = frozenset({"llama-factory"})
_TRL = '''\
"""Train the placed LoRAs with TRL; the data is yours to name."""

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(
    model={model!r},
    args=SFTConfig(output_dir="trained"),
    train_dataset=load_dataset("json", data_files="train.jsonl", split="train"),
    peft_config=LoraConfig.from_pretrained({folder!r}),
)
trainer.train()
trainer.save_model()
'''
