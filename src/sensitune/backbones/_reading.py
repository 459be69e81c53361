"""Weight files -> tables of tensors, without ever running code that a file may hold."""

from __future__ import annotations

import argparse
import logging
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sensitune._files import is_bomb
from sensitune._schema import shorten, show_name
from sensitune.errors import CheckpointError

_logger = logging.getLogger(__name__)

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
READABLE = ".safetensors, .npz, .pth, .pt, .bin, .pth.tar"
# Where checkpoints keep their weights: MAE, Swin and ConvNeXt under "model", MoCo v3 and Lightning under "state_dict".
# Of a model and its moving average (EMA), the average is taken, as timm does.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_RAW = ("state_dict", "model", "model_state_dict", "module")
# What wraps a model puts a name before its own: torch.compile, DataParallel and AveragedModel, Lightning modules.
_AVERAGED_PREFIXES = ("model_ema.", "ema_model.", "averaged_model.", "ema.")
_RAW_PREFIXES = ("_orig_mod.", "module.", "model.", "net.", "network.")
_BESIDE_THE_MODEL = ("n_averaged",)
_DEEPEST = 4  # wrappers within one another; a hostile pickle may hold itself
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
    if path.suffix.lower() not in (".safetensors", ".npz", *PICKLE_SUFFIXES):
        raise CheckpointError(f"`checkpoint` {path} has a suffix that Sensitune does not read. It reads {READABLE}.")
    _refuse_stand_ins(path)
    _refuse_bombs(path)
    return path


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a ``.safetensors`` or pickled weight file, by name.

    Args:
        path: A file that `checkpoint_path` accepted, other than ``.npz``.

    Returns:
        Tensors on the CPU. What training scripts and wrappers put around them is taken off: ``model``, ``state_dict``,
        ``module.``, ``_orig_mod.``, Lightning's ``model.``. Of weights and their moving average, the average is taken,
        and a logged line says so; of a contrastive pretraining only the encoder is kept.

    Raises:
        CheckpointError: If the file is damaged, needs unsafe unpickling, or holds no table of tensors.
    """
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    return _encoder_alone(_unwrap(content, path))


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
    """The table of tensors within what a training script saved, by the model's own names."""
    for _ in range(_DEEPEST):
        if found := _wrapped(content):
            _tell(path, found[0], found)
            content = content[found[0]]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"`checkpoint` {path} holds a {type(content).__name__}, not a table of tensors by name.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"`checkpoint` {path} is not a table of tensors by name: {shorten(name)} is a {type(value).__name__}. "
                f"Save the model's state_dict() alone."
            )
        _refuse_claims(path, name, value)
    return _without_prefixes(dict(content), path)


def _refuse_claims(path: Path, name: str, tensor: torch.Tensor) -> None:
    """A pickle may say that a tensor is larger than what it stores, or keeps its values in another way."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise CheckpointError(f"`checkpoint` {path}: `{show_name(name)}` is sparse, quantised or empty. Save it dense.")
    if is_bomb(path.stat().st_size, claimed := tensor.numel() * tensor.element_size()):
        raise CheckpointError(f"`checkpoint` {path} is damaged: `{show_name(name)}` claims {claimed:,} bytes.")


def _wrapped(content: Any) -> list[str]:
    """The keys that hold a model, the one to take first."""
    if not isinstance(content, Mapping):
        return []
    return [key for key in (*_AVERAGED, *_RAW) if isinstance(content.get(key), Mapping)]


def _without_prefixes(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Names as the model has them, where each begins with what a wrapper put before it."""
    while True:
        own = {name: tensor for name, tensor in tensors.items() if name not in _BESIDE_THE_MODEL}
        found = [prefix for prefix in (*_AVERAGED_PREFIXES, *_RAW_PREFIXES) if any(n.startswith(prefix) for n in own)]
        averaged = [prefix for prefix in found if prefix in _AVERAGED_PREFIXES]
        if len(found) - len(averaged) > 1 or len(averaged) > 1 or not found:
            return tensors
        if not all(name.startswith(tuple(found)) for name in own):
            return tensors
        _tell(path, found[0], found)
        tensors = {name.removeprefix(found[0]): own[name] for name in own if name.startswith(found[0])}


def _tell(path: Path, taken: str, found: Sequence[str]) -> None:
    """Say which of a model's two sets of weights is taken."""
    if len(found) > 1 and taken in (*_AVERAGED, *_AVERAGED_PREFIXES):
        names = [name.removesuffix(".") for name in found]
        _logger.warning(
            "%s holds %s: the moving average, %s, is taken, as timm does. For the others, save them alone.",
            path,
            " and ".join(names),
            names[0],
        )


def _encoder_alone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not all(name.startswith((_ENCODER_PREFIX, *_BESIDE_THE_ENCODER)) for name in tensors):
        return tensors
    return {
        name.removeprefix(_ENCODER_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(_ENCODER_PREFIX)
    }
