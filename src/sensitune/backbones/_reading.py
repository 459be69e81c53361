"""Weight files -> tables of tensors, without ever running code that a file may hold."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sensitune._files import is_bomb
from sensitune._schema import show_name
from sensitune.errors import CheckpointError

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
READABLE = ".safetensors, .npz, .pth, .pt, .bin, .pth.tar"
# Where published checkpoints keep their weights: MAE, Swin and ConvNeXt under "model", MoCo v3 under "state_dict".
_WRAPPERS = ("model", "state_dict")
_PARALLEL_PREFIX = "module."
# MoCo v3 saves its pretraining as it stands: the encoder, its slow copy and the network that predicts the one from it.
_ENCODER_PREFIX = "base_encoder."
_BESIDE_THE_ENCODER = ("momentum_encoder.", "predictor.")


def checkpoint_path(checkpoint: str) -> Path:
    """Check that a checkpoint is there and of a kind that can be read.

    Args:
        checkpoint: A path, absolute or relative, ``~`` allowed.

    Returns:
        The path.

    Raises:
        CheckpointError: If it is missing, a folder, of another kind, or a Git LFS pointer or a web page by that name.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise CheckpointError(f"`checkpoint` {checkpoint} is not a file. Give the path of a weight file ({READABLE}).")
    if path.suffix not in (".safetensors", ".npz", *PICKLE_SUFFIXES):
        raise CheckpointError(f"`checkpoint` {path} has a suffix that Sensitune does not read. It reads {READABLE}.")
    _refuse_stand_ins(path)
    _refuse_bombs(path)
    return path


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a ``.safetensors`` or pickled weight file, by name.

    Args:
        path: A file that `checkpoint_path` accepted, other than ``.npz``.

    Returns:
        Tensors on the CPU. A wrapping ``model`` or ``state_dict`` and a leading ``module.`` are taken off; of a
        contrastive pretraining only the encoder is kept.

    Raises:
        CheckpointError: If the file is damaged, needs unsafe unpickling, or holds no table of tensors.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _encoder_alone(_without_parallel_prefix(_unwrap(content, path)))


def _refuse_stand_ins(path: Path) -> None:
    """What lies there when a download went wrong: a pointer of Git LFS, or the page that leads to the file."""
    with path.open("rb") as file:
        start = file.read(256).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"`checkpoint` {path} is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`."
        )
    if start.startswith((b"<!doctype html", b"<html")):
        raise CheckpointError(
            f"`checkpoint` {path} is an HTML page that was saved in place of the weights. Download the file itself."
        )


def _refuse_bombs(path: Path) -> None:
    """torch and NumPy unpack compressed archives too, which weights hardly gain from."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise CheckpointError(damaged(path, error)) from error
    if is_bomb(packed := path.stat().st_size, unpacked):
        raise CheckpointError(f"`checkpoint` {path} of {packed:,} bytes unpacks to {unpacked:,}. It is refused.")


def damaged(path: Path, error: Exception) -> str:
    """What to say of a file that breaks off or was never a weight file."""
    return (
        f"`checkpoint` {path} is truncated, damaged or not a weight file ({type(error).__name__}). "
        f"Download or copy it again."
    )


def unsafe(path: Path) -> str:
    """What to say of a file that could run code."""
    return f"`checkpoint` {path} needs unsafe unpickling, which Sensitune never does; convert it to safetensors."


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(damaged(path, error)) from error


def _read_pickle(path: Path) -> Any:
    """`torch.load` of tensors and plain containers; argparse's Namespace, which training scripts add, is harmless."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore", UserWarning)  # an unusual pickle protocol is refused or read, not warned of
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(unsafe(path) if _is_pickle(path) else damaged(path, error)) from error
    except Exception as error:  # a broken zip, pickle or storage surfaces as almost any type
        raise CheckpointError(damaged(path, error)) from error


def _is_pickle(path: Path) -> bool:
    """Whether the file is one at all; torch takes the letters of a text for forbidden instructions."""
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO or zipfile.is_zipfile(file)


def _unwrap(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"`checkpoint` {path} holds a {type(content).__name__}, not a table of tensors by name.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"`checkpoint` {path} is not a table of tensors by name: {name!r} is a {type(value).__name__}. "
                f"Save the model's state_dict() alone."
            )
        _refuse_claims(path, name, value)
    return dict(content)


def _refuse_claims(path: Path, name: str, tensor: torch.Tensor) -> None:
    """A pickle may say that a tensor is larger than what it stores, or keeps its values in another way."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise CheckpointError(f"`checkpoint` {path}: `{show_name(name)}` is sparse, quantised or empty. Save it dense.")
    if is_bomb(path.stat().st_size, claimed := tensor.numel() * tensor.element_size()):
        raise CheckpointError(f"`checkpoint` {path} is damaged: `{show_name(name)}` claims {claimed:,} bytes.")


def _without_parallel_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not all(name.startswith(_PARALLEL_PREFIX) for name in tensors):
        return tensors
    return {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in tensors.items()}


def _encoder_alone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not all(name.startswith((_ENCODER_PREFIX, *_BESIDE_THE_ENCODER)) for name in tensors):
        return tensors
    return {
        name.removeprefix(_ENCODER_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(_ENCODER_PREFIX)
    }
