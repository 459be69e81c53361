"""The trained part of a model, to a folder and back: PEFT's own format where the model is a PEFT model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sensitune._files import atomic_folder
from sensitune._processes import Processes
from sensitune.errors import AdapterFileError
from sensitune.training._manifest import AdapterManifest
from sensitune.training._sharding import gathered, is_sharded, loading_whole
from sensitune.tuner import check_complete

_PLAIN_WEIGHTS = "trained.safetensors"


def save_weights(model: nn.Module, folder: str | os.PathLike[str], *, manifest: AdapterManifest | None = None) -> None:
    """Write what trains to a folder that appears whole or not at all; an older one of that name is replaced.

    Of processes that work together every one calls this, and the first writes.

    Args:
        model: A PEFT model (saved as PEFT saves it: adapter and head) or a plain module (its trained parameters).
        folder: The folder's final name.
        manifest: Saved with it, so that it can be used on its own.
    """
    whole = None if not is_sharded(model) else gathered(_kept_tensors(model))
    Processes.found().first(lambda: _save(model, folder, manifest, whole))


def _save(
    model: nn.Module, folder: str | os.PathLike[str], manifest: AdapterManifest | None, whole: dict[str, Any] | None
) -> None:
    with atomic_folder(folder) as temporary:
        if isinstance(model, PeftModel):
            # Without the switch PEFT asks the hub whether the vocabulary has grown.
            model.save_pretrained(str(temporary), save_embedding_layers=False, state_dict=whole)
        else:
            save_file(_trained_tensors(model) if whole is None else whole, temporary / _PLAIN_WEIGHTS)
        if manifest is not None:
            manifest.save(temporary)


def is_whole(folder: Path) -> bool:
    """Whether a folder holds what `save_weights` wrote, to its end."""
    files = [each for each in (folder / "adapter_model.safetensors", folder / _PLAIN_WEIGHTS) if each.is_file()]
    try:
        for each in files:
            with safe_open(each, framework="pt"):
                pass
    except (OSError, SafetensorError):
        return False
    return bool(files)


def load_weights(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Put what `save_weights` wrote back into the same model, in place.

    Args:
        model: The model, with the adapter it had when it was saved.
        folder: What `save_weights` wrote.

    Raises:
        AdapterFileError: If the folder holds tensors that the model has no place for, or lacks some.
    """
    if isinstance(model, PeftModel):
        check_complete(folder)
        tensors = load_peft_weights(str(folder), device="cpu")
        with loading_whole(model):
            found: Any = set_peft_model_state_dict(model, tensors, adapter_name=model.active_adapter)
        unexpected = found.unexpected_keys
    else:
        tensors = load_file(Path(folder) / _PLAIN_WEIGHTS)
        unexpected = sorted(tensors.keys() ^ _trained_tensors(model).keys())
        with loading_whole(model):
            model.load_state_dict(tensors, strict=False)
    if unexpected:
        raise AdapterFileError(f"{folder} does not fit the model: {unexpected[0]!r} is in one of them only.")


def _kept_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Of a PEFT model's state what it may save: all that trains, and buffers; of another model what trains."""
    if not isinstance(model, PeftModel):
        return _trained_tensors(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def _trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    named = model.named_parameters()
    return {name: parameter.detach().contiguous() for name, parameter in named if parameter.requires_grad}
