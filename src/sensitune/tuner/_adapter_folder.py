"""An adapter folder as it is read: what is missing or damaged in it is said by the name of its file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sensitune._schema import read_json, shorten, show_name, show_reason
from sensitune._tensor_file import finite_floats
from sensitune.errors import AdapterFileError, SensituneError

CONFIG_NAME: Final = "adapter_config.json"
WEIGHTS_NAME: Final = "adapter_model.safetensors"
_OLD_WEIGHTS: Final = "adapter_model.bin"


def weight_files(folder: Path) -> list[Path]:
    """The files in a folder that hold an adapter's weights, as PEFT names them."""
    return [folder / name for name in (WEIGHTS_NAME, _OLD_WEIGHTS) if (folder / name).is_file()]


def check_whole(weights: Path) -> None:
    """Refuse a file of weights that breaks off, or is none.

    Args:
        weights: The file.

    Raises:
        AdapterFileError: If it does.
    """
    try:
        with safe_open(weights, framework="pt"):
            pass
    except SafetensorError as error:
        raise AdapterFileError(f"{weights} is damaged: {show_reason(error)}. Restore it, or train again.") from error


def check_complete(folder: str | os.PathLike[str]) -> None:
    """Refuse an adapter folder without its files: PEFT would ask the hub for a repository of the folder's name.

    Args:
        folder: The adapter folder.

    Raises:
        AdapterFileError: If one is missing.
    """
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (Path(folder) / name).is_file():
            raise AdapterFileError(f"{os.fspath(folder)} has no {name}. Restore it, or train again.")


def read_adapter_config(folder: str | os.PathLike[str]) -> PeftConfig:
    """The configuration of an adapter of SPT or of one of PEFT's own methods.

    Args:
        folder: The adapter folder.

    Returns:
        The configuration.

    Raises:
        AdapterFileError: If it is missing or damaged, or of a method that PEFT does not have.
    """
    path = Path(folder) / CONFIG_NAME
    values = read_json(path, error=AdapterFileError)
    method = values.get("peft_type") if isinstance(values, dict) else None
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(method) if isinstance(method, str) else None  # type: ignore[call-overload]
    if known is None:
        raise AdapterFileError(f"{path}: `peft_type` must be one of PEFT's methods. Got {shorten(method)}.")
    with _naming_what_peft_refuses(path):
        config: PeftConfig = known.from_pretrained(os.fspath(folder))
        return config


def load_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> PeftModel:
    """Put an adapter of SPT or of one of PEFT's own methods into its base.

    Args:
        model: The plain base; it becomes the tuned model.
        folder: The adapter folder; it is never looked up on the hub.

    Returns:
        The tuned model, in eval mode.

    Raises:
        AdapterFileError: If a file is missing, damaged, or does not belong to the other; if a weight is not finite.
        AllocationMismatchError: If the adapter was made for another model.
    """
    check_complete(folder)
    config, weights = read_adapter_config(folder), Path(folder) / WEIGHTS_NAME
    with _naming_what_peft_refuses(weights):
        tuned: PeftModel = PeftModel.from_pretrained(model, os.fspath(folder), config=config)
        _check_loaded(tuned, weights)
        return tuned.eval()


def complaint(tensor: Tensor, like: Tensor | None) -> str | None:
    """What is wrong with a tensor of an adapter's file.

    Args:
        tensor: The tensor.
        like: The model's own tensor in its place; None if there is none.

    Returns:
        It, as it reads after the tensor's name; None if nothing is.
    """
    if like is None or like.is_floating_point():
        return finite_floats("", tensor)
    if tensor.dtype == like.dtype or {tensor.dtype, like.dtype} == {torch.int32, torch.int64}:
        return None
    held, found = (str(each.dtype).removeprefix("torch.") for each in (like, tensor))
    return f"must hold {held}, not {found}"


def _check_loaded(tuned: PeftModel, weights: Path) -> None:
    """PEFT passes over what is missing, casts what is no number, and looks at no value."""
    own: dict[str, Any] = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    with safe_open(weights, framework="pt") as file:
        names = set(file.keys())
        if missing := sorted(own.keys() - names):
            raise AdapterFileError(f"{weights} is incomplete: it lacks `{missing[0]}`. Restore it, or train again.")
        for name in sorted(names):
            if found := complaint(file.get_tensor(name), own.get(name)):
                raise AdapterFileError(
                    f"{weights} is damaged: `{show_name(name)}` {found}. Restore it, or train again."
                )


@contextmanager
def _naming_what_peft_refuses(path: Path) -> Iterator[None]:
    try:
        yield
    except SensituneError:
        raise
    except Exception as error:  # PEFT checks little beforehand, so what is wrong surfaces as almost any type
        raise AdapterFileError(
            f"{path} is damaged, or does not belong to the files beside it ({type(error).__name__}: "
            f"{show_reason(error)}). Restore it, or train again."
        ) from error
