"""An adapter folder as PEFT writes it for LoRA, from the factors alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from sensitune._files import atomic_folder
from sensitune.tuner._card import ModelCard

_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"


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
        folder: Its final name; an older one is replaced.
        config: The configuration.
        factors: Module -> A ``[rank, in, ...]`` and B ``[out, rank]``; dimensions behind those of A are a kernel's.
        head: Parameter name -> value, of the modules that the configuration saves whole.
        card: The model card; None writes none.
    """
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
