"""An adapter folder as PEFT writes it for LoRA, from the factors alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import CONFIG_NAME
from safetensors.torch import save_file

from sensitune._files import atomic_folder
from sensitune._schema import parse_json
from sensitune.errors import ArgumentError
from sensitune.tuner._card import CARD_NAME, ModelCard

_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"
_OURS = frozenset({CONFIG_NAME, _WEIGHTS, CARD_NAME, "sensitune.json"})


def write_lora_folder(
    folder: str | os.PathLike[str],
    config: LoraConfig,
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    head: Mapping[str, torch.Tensor],
    card: ModelCard | None = None,
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``; the folder appears whole or not at all.

    Args:
        folder: Its final name; an older one of the kind is replaced.
        config: The configuration.
        factors: Module -> A ``[rank, in, ...]`` and B ``[out, rank]``; dimensions behind those of A are a kernel's.
        head: Parameter name -> value, of the modules that the configuration saves whole.
        card: The model card; None writes none.

    Raises:
        ArgumentError: If there is something else in the folder.
    """
    _check_replaceable(Path(folder))
    tensors = {_PREFIX + name: value for name, value in head.items()}
    for module, (down, up) in factors.items():
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = down
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = up.reshape(*up.shape, *(1 for _ in down.shape[2:]))
    with atomic_folder(folder) as temporary:
        # As PEFT saves a configuration: what is loaded is not trained unless that is asked for.
        trained, config.inference_mode = config.inference_mode, True
        try:
            config.save_pretrained(os.fspath(temporary))
        finally:
            config.inference_mode = trained
        save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
            Path(temporary) / _WEIGHTS,
            metadata={"format": "pt"},
        )
        if card is not None:
            card.write(Path(temporary))


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace what is no plain LoRA, such as the adapter that is exported, or somebody's documents."""
    if not folder.exists():
        return
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    if strange := [name for name in found if name not in _OURS]:
        raise ArgumentError(
            f"{folder} holds `{strange[0]}`, which no plain LoRA has, and is not replaced. Give another folder."
        )
    if found and not _is_lora(folder / CONFIG_NAME):
        raise ArgumentError(f"{folder} holds another kind of adapter, and is not replaced. Give another folder.")


def _is_lora(config: Path) -> bool:
    try:
        values = parse_json(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("peft_type") == "LORA"
