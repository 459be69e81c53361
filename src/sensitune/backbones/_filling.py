"""Tables of tensors -> a model, every backbone tensor exactly once and with its own shape."""

from __future__ import annotations

import math
import re
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import nn

from sensitune._schema import show_name
from sensitune.backbones._hash import backbone_tensors, is_within
from sensitune.backbones._reading import damaged, unsafe
from sensitune.errors import CheckpointError
from sensitune.sites import find_head

Tensors: TypeAlias = dict[str, torch.Tensor]
# What masked-image pretraining leaves in its checkpoints beside the encoder.
_PRETRAINING_LEFTOVERS = re.compile(r"mask_token$|decoder_")
_NPZ_POSITIONS = "posembed_input/pos_embedding"
_NPZ_HEAD = re.compile(r"(.*/)?(head|pre_logits)/")
_NAMES_SHOWN = 3


def to_timm_layout(tensors: Tensors, model: nn.Module, *, architecture: str, source: str) -> Tensors:
    """Rename and resize a published checkpoint's tensors the way timm does for its own.

    A resized position embedding is interpolated bicubically with antialiasing, also for FlexiViT and RADIO, for which
    timm itself would do it bilinearly.

    Args:
        tensors: The file's tensors by the names of whoever published it.
        model: The timm model to be filled; its position embedding's size is what the file's is resized to.
        architecture: The model's timm name.
        source: What to call the file in an error.

    Returns:
        Tensors by timm's names; unchanged for architectures whose files timm does not convert.

    Raises:
        CheckpointError: If timm cannot convert them.
    """
    module = sys.modules[timm.models.model_entrypoint(architecture.partition(".")[0]).__module__]
    convert: Callable[[Tensors, nn.Module], Tensors] | None = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        return convert(tensors, model)
    except Exception as error:  # timm's conversions assume the right file; the wrong one fails in any way
        raise CheckpointError(
            f"{source} does not fit {architecture}: its {len(tensors)} tensors cannot be converted "
            f"({type(error).__name__}: {error}). Name the architecture that it was made for."
        ) from error


def fill_strictly(model: nn.Module, tensors: Tensors, *, source: str, keep_head: bool = False) -> tuple[str, ...]:
    """Copy a table of tensors into a model; the head is left as it is unless asked for.

    Args:
        model: The model to fill.
        tensors: Tensors by the model's own names.
        source: What to call the table in an error.
        keep_head: Also fill the head, from a table that must hold it in the model's size.

    Returns:
        Names of the tensors that were left out: a head, parts of a pretraining task.

    Raises:
        CheckpointError: If a tensor of the model is missing, has another shape or values that are no weights, or one is
            left over.
    """
    head = find_head(model)
    state = model.state_dict()
    wanted = state if keep_head else {name: state[name] for name in state if not is_within(name, head)}
    spare = [name for name in tensors if name not in wanted]
    around = _around(model, head)
    dropped = tuple(name for name in spare if is_within(name, around) or _PRETRAINING_LEFTOVERS.match(name))
    _check_fit(wanted, tensors, foreign=[name for name in spare if name not in dropped], source=source)
    _check_values(wanted, tensors, source=source)
    model.load_state_dict(state | {name: tensors[name] for name in wanted})
    return dropped


def fill_from_npz(model: nn.Module, path: Path, *, architecture: str) -> tuple[str, ...]:
    """Fill a vision transformer from a NumPy archive in the layout of Google's published ones, by timm's own reader.

    Args:
        model: The model to fill; its head is left undefined.
        path: The archive.
        architecture: The model's timm name.

    Returns:
        Names of the arrays that were left out: the head, and the layer before it that only pretraining had.

    Raises:
        CheckpointError: If the archive is damaged, holds Python objects, or does not fill every backbone tensor.
    """
    reader: Any = getattr(model, "load_pretrained", None)
    if reader is None:
        raise CheckpointError(f"`checkpoint` {path}: timm reads no .npz for {architecture}. Give a safetensors file.")
    names = _npz_names(path)
    _check_npz_depth(model, names, path, architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)  # what timm does not write stays marked
        try:
            reader(str(path))
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise CheckpointError(damaged(path, error)) from error
        except ValueError as error:
            said = unsafe(path) if "allow_pickle" in str(error) else _misfit(path, architecture, error)
            raise CheckpointError(said) from error
        except Exception as error:  # text, numbers and other shapes in the place of weights fail in any way
            raise CheckpointError(_misfit(path, architecture, error)) from error
    _resize_npz_positions(model, names, path)
    filled = backbone_tensors(model)
    if empty := [name for name, tensor in filled.items() if tensor.isnan().all()]:
        raise CheckpointError(f"`checkpoint` {path} does not fit {architecture}: {count_names(empty, 'missing')}.")
    for name, tensor in filled.items():
        check_finite(name, tensor, f"`checkpoint` {path}")
    return tuple(name for name in names if _NPZ_HEAD.match(name))


def _resize_npz_positions(model: nn.Module, names: list[str], path: Path) -> None:
    """timm resizes these bilinearly; the same weights from the hub, and every other file, are resized bicubically."""
    name = next((name for name in names if name.endswith(_NPZ_POSITIONS)), None)
    own = model.state_dict().get("pos_embed")
    if name is None or own is None:
        return
    positions = torch.from_numpy(np.load(path)[name])
    if positions.shape != own.shape:
        grid: Any = model.get_submodule("patch_embed").grid_size
        own.copy_(resample_abs_pos_embed(positions, list(grid), num_prefix_tokens=own.shape[1] - math.prod(grid)))


def _npz_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _refuse_claims(archive, member, path)
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and NumPy have many errors for what breaks off
        raise CheckpointError(damaged(path, error)) from error


def _refuse_claims(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """NumPy takes memory for the shape that an array says it has, before it reads any of it."""
    with archive.open(member) as file:
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        major, _ = np.lib.format.read_magic(file)
        shape, _, dtype = read_header[major](file)
    if dtype.hasobject:
        raise CheckpointError(unsafe(path))
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise CheckpointError(
            f"`checkpoint` {path} is damaged: {show_name(member.filename)} of {member.file_size:,} bytes claims the "
            f"shape {shape}. Download or copy it again."
        )


def _check_npz_depth(model: nn.Module, names: list[str], path: Path, architecture: str) -> None:
    """timm reads as many blocks as the model has; a deeper file must not be cut in silence."""
    numbers = {found[1] for name in names if (found := re.search(r"encoderblock_(\d+)/", name))}
    blocks = getattr(model, "blocks", None)
    if numbers and isinstance(blocks, nn.Sequential | nn.ModuleList) and len(numbers) != len(blocks):
        raise CheckpointError(
            f"`checkpoint` {path} does not fit {architecture}: it has {len(numbers)} blocks, the model {len(blocks)}."
        )


def _misfit(path: Path, architecture: str, error: Exception) -> str:
    return f"`checkpoint` {path} does not fit {architecture} ({error}). Name the architecture that it was made for."


def _around(model: nn.Module, head: tuple[str, ...]) -> tuple[str, ...]:
    """The head's outermost modules up to half of the model: an old head may have parts the new one lacks."""
    half = sum(each.numel() for each in model.parameters()) / 2
    around = []
    for name in head:
        parts = name.split(".")
        wider = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        small = (each for each in wider if sum(p.numel() for p in model.get_submodule(each).parameters()) < half)
        around.append(next(small, name))
    return tuple(around)


def _check_fit(wanted: Tensors, tensors: Tensors, *, foreign: list[str], source: str) -> None:
    missing = [name for name in wanted if name not in tensors]
    reshaped = [
        f"{name} {list(tensors[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if missing or reshaped or foreign:
        problems = [
            count_names(missing, "missing"),
            count_names(reshaped, "of another shape"),
            count_names(foreign, "that the model does not have"),
        ]
        raise CheckpointError(
            f"{source} does not fit the model of {len(wanted)} tensors: {'; '.join(filter(None, problems))}. "
            f"Name the architecture that it was made for."
        )


def _check_values(wanted: Tensors, tensors: Tensors, *, source: str) -> None:
    """Refuse what would be copied without a word: another kind of numbers, and what is no number."""
    for name, own in wanted.items():
        tensor = tensors[name]
        if tensor.is_floating_point() != own.is_floating_point():
            kinds = " instead of ".join(str(each.dtype).removeprefix("torch.") for each in (tensor, own))
            raise CheckpointError(f"{source} holds `{name}` as {kinds}. Save the weights as they were trained.")
        check_finite(name, tensor, source)


def check_finite(name: str, tensor: torch.Tensor, source: str) -> None:
    """Refuse weights that are no numbers.

    Args:
        name: What the model calls the tensor.
        tensor: The tensor.
        source: Where it is from.

    Raises:
        CheckpointError: If it holds an infinity or what is not a number.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{source} holds `{name}` with values that are not finite: its training diverged. Take an earlier one."
        )


def count_names(names: list[str], what: str) -> str:
    """``3 missing (a, b, c)``; empty for an empty list."""
    shown = ", ".join(map(show_name, names[:_NAMES_SHOWN])) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return f"{len(names)} {what} ({shown})" if names else ""
