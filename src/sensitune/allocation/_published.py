"""Read the allocations that the authors of SPT published, without executing anything from the files.

Each file is a pickle with CUDA tensors and numpy scalars, written by the published code for ViT-B/16. It is read with
torch's restricted unpickler and the shortest list of extra names that the files need.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._cost import StructuredType
from sensitune.errors import AdapterFileError, AllocationMismatchError
from sensitune.sites import ModelOutline, Site

_OPERATIONS = ("q", "k", "v", "proj", "fc1", "fc2")
_KEYS = frozenset({"unstructured_name_shapes_int", "unstructured_indexes", "tuned_matrices", "tuned_vectors", "params"})
# Rank, alpha and beta are not in the files; these are the published script's.
_RANK, _ALPHA, _BETA = 8, 10.0, 5.0


def load_published_allocation(path: str | os.PathLike[str], outline: ModelOutline) -> Allocation:
    """The exact configuration of one published stage-1 result, for a model with the same blocks.

    Args:
        path: A ``.pth`` file of the published code, such as ``cifar_lora_0.4.pth``; the name tells LoRA from Adapter.
        outline: The model to map it to: `outline_model` of timm's ViT-B/16.

    Returns:
        An allocation whose `trainable_params` equals the file's count. Entries of norm vectors, which the published
        code counts but never trains, are trained here.

    Raises:
        AdapterFileError: If the file is damaged, no such allocation, or asks for more than tensors and numbers.
        AllocationMismatchError: If the model lacks a site that the file names, or the counts differ.
    """
    content = _read(path)
    kind: StructuredType = "adapter" if "adapter" in os.path.basename(path) else "lora"
    sites = {_published_name(site): site for site in outline.sites}
    allocation = Allocation(
        outline=outline,
        structured=_structured(content, sites, path),
        vectors=tuple(_find(sites, name, path).id for name in content["tuned_vectors"]),
        sparse=_sparse(content, sites, path),
        structured_type=kind,
        alpha=_ALPHA,
        beta=_BETA,
        rule="spt",
        always_trained=tuple(outline.always_trained),
        metadata={"source": os.path.basename(path)},
    )
    expected = round(float(content["params"]) * 1e6)
    if allocation.trainable_params != expected:
        raise AllocationMismatchError(
            f"'{path}' says it trains {expected:,} parameters, but on this model it comes to "
            f"{allocation.trainable_params:,}. It was made for ViT-B/16 (timm `vit_base_patch16_224`)."
        )
    return allocation


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    # The files were written with numpy 1; numpy 2 keeps the function under another name.
    scalar: Any = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        np.dtypes.Float64DType,
        np.dtypes.Int64DType,
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        # torch's own message advises to load unsafely, which is the last thing to tell anyone here.
        raise AdapterFileError(
            f"'{path}' cannot be read as a published allocation: it is truncated, or needs more than tensors and "
            "numbers to be unpickled. Nothing from it was executed; get the file again from the authors."
        ) from error
    missing = _KEYS - set(content) if isinstance(content, dict) else _KEYS
    if missing:
        raise AdapterFileError(f"'{path}' is not a published allocation: it lacks {', '.join(sorted(missing))}.")
    return dict(content)


def _published_name(site: Site) -> str:
    """``blocks.0.attn.qkv.weight[q]`` is ``blocks.0.attn.q.weight`` in the published files."""
    if site.rows is None:
        return site.id
    module = site.module.rpartition(".")[0]
    return f"{module}.{site.operation}.{site.name}"


def _find(sites: Mapping[str, Site], name: str, path: str | os.PathLike[str]) -> Site:
    if name not in sites:
        raise AllocationMismatchError(
            f"'{path}' names `{name}`, which this model does not have. It was made for ViT-B/16 "
            "(timm `vit_base_patch16_224`)."
        )
    return sites[name]


def _structured(content: Mapping[str, Any], sites: Mapping[str, Site], path: str | os.PathLike[str]) -> dict[str, int]:
    """The flags of each block's six matrices, as ids with the published rank."""
    names = [
        f"blocks.{block}.{'mlp' if operation.startswith('fc') else 'attn'}.{operation}.weight"
        for block, flags in enumerate(content["tuned_matrices"])
        for operation, flag in zip(_OPERATIONS, flags, strict=True)
        if flag
    ]
    return {_find(sites, name, path).id: _RANK for name in names}


def _sparse(
    content: Mapping[str, Any], sites: Mapping[str, Site], path: str | os.PathLike[str]
) -> dict[str, torch.Tensor]:
    """Cut the flat indices over the concatenation of all unstructured tensors into indices within each site."""
    sizes: Mapping[str, int] = content["unstructured_name_shapes_int"]
    indices = content["unstructured_indexes"].flatten().long().sort().values
    ends = torch.tensor(list(sizes.values())).cumsum(0)
    if indices.numel() and (int(indices[0]) < 0 or int(indices[-1]) >= int(ends[-1])):
        raise AdapterFileError(f"'{path}' is damaged: an index lies outside the {int(ends[-1]):,} scalars it covers.")
    cuts = torch.searchsorted(indices, ends)
    sparse: dict[str, torch.Tensor] = {}
    start = 0
    for name, size, end, cut in zip(sizes, sizes.values(), ends.tolist(), cuts.tolist(), strict=True):
        site = _find(sites, name, path)
        if site.numel != size:
            raise AllocationMismatchError(
                f"'{path}' was made for a `{name}` of {size:,} scalars, but this model's has {site.numel:,}. "
                "It was made for ViT-B/16 (timm `vit_base_patch16_224`)."
            )
        if cut > start:
            sparse[site.id] = indices[start:cut] - (end - size)
        start = cut
    return sparse
