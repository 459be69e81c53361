"""The value that says where a model is tuned, how, and what it costs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch

from sensitune._schema import AtLeastOne, NonNegativeInt, PositiveInt, show_name
from sensitune._tensor_file import load_tensor_file, naming_damage, save_tensor_file
from sensitune.allocation._cost import StructuredType, module_params
from sensitune.allocation._rows import SiteRow, Tuning, format_rows
from sensitune.errors import ArgumentError
from sensitune.sites import ModelOutline, Site

_KIND = "allocation"
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Allocation:
    """Which sites get a module, which vectors are tuned whole, and which single scalars are trained in the rest.

    Attributes:
        outline: The model the allocation was made for.
        structured: Id of each matrix site that gets a LoRA or an Adapter -> the rank of its module; in site order.
        vectors: Ids of the vector sites that are tuned whole.
        sparse: Site id -> int64 flat indices within the site (row-major, sorted) of the scalars that are trained.
        structured_type: What the structured sites get: ``"lora"`` or ``"adapter"``; None = matrices stay sparse.
        tau: How many of the most sensitive scalars were selected (under a budget: how far down the ranking it reached);
            None for baselines that rank nothing.
        budget: The number of trainable parameters that was asked for; None if `tau` was given, or nothing.
        alpha: A matrix is structured from ``P / alpha`` selected scalars on; None where no ranking was used.
        beta: A vector of size n is tuned whole from ``n / beta`` selected scalars on; None where no ranking was used.
        rule: How the choice was made: ``"spt"``, or the name of a baseline.
        always_trained: Names of the parameters trained whole whatever the ranking (class token); empty for head only.
        metadata: Where the allocation comes from, JSON-ready: criterion, number of batches, model, seed, versions.

    Raises:
        ArgumentError: If a site is unknown, of the wrong kind, named twice, or given an impossible rank, or an index
            lies outside its site.
    """

    outline: ModelOutline
    structured: Mapping[str, int]
    vectors: tuple[str, ...]
    sparse: Mapping[str, torch.Tensor]
    structured_type: StructuredType | None = None
    tau: int | None = None
    budget: int | None = None
    alpha: float | None = None
    beta: float | None = None
    rule: str = "spt"
    always_trained: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_structured(self)
        _check_sites(self)
        for site_id, indices in self.sparse.items():
            _check_indices(self.site(site_id), indices)
        in_order = {site.id: self.structured[site.id] for site in self.outline.sites if site.id in self.structured}
        object.__setattr__(self, "structured", in_order)

    @cached_property
    def _sites(self) -> dict[str, Site]:
        return {site.id: site for site in self.outline.sites}

    def site(self, site_id: str) -> Site:
        """The site of an id.

        Args:
            site_id: For example ``blocks.0.attn.qkv.weight[q]``.

        Returns:
            The site.

        Raises:
            ArgumentError: If the model has no such ranked site.
        """
        if site_id not in self._sites:
            known = f"one of the {len(self._sites)} sites that the model ranks"
            raise ArgumentError(f"`{show_name(site_id)}` is not {known}.")
        return self._sites[site_id]

    @property
    def module_label(self) -> str:
        """What the structured sites get, in words: ``LoRA of rank 8``, ``Adapter of ranks 1 to 12``, ``no modules``."""
        if not self.structured:
            return "no modules"
        low, high = min(self.structured.values()), max(self.structured.values())
        name = "LoRA" if self.structured_type == "lora" else "Adapter"
        return f"{name} of rank {low}" if low == high else f"{name} of ranks {low} to {high}"

    @property
    def num_sites(self) -> int:
        """Number of sites that are tuned in some way."""
        return len(self.structured) + len(self.vectors) + len(self.sparse)

    @property
    def structured_params(self) -> int:
        """Parameters of all LoRA or Adapter modules."""
        return sum(module_params(self.site(name), self.structured_type, rank) for name, rank in self.structured.items())

    @property
    def vector_params(self) -> int:
        """Parameters of the vectors that are tuned whole."""
        return sum(self.site(name).numel for name in self.vectors)

    @property
    def sparse_params(self) -> int:
        """Number of single scalars that are trained."""
        return sum(indices.numel() for indices in self.sparse.values())

    @property
    def always_trained_params(self) -> int:
        """Parameters of the class token and its kin."""
        return sum(self._always_sizes().values())

    @property
    def trainable_params(self) -> int:
        """Everything that is trained, the class token counted, the head not: the number a budget is compared with."""
        return self.structured_params + self.vector_params + self.sparse_params + self.always_trained_params

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the modules of the task's classifier, which is always trained whole."""
        return self.outline.head

    @property
    def head_params(self) -> int:
        """Parameters of the head."""
        return self.outline.head_params

    def table(self) -> list[SiteRow]:
        """One row per always-trained parameter and per ranked site; their ``params`` sum to `trainable_params`."""
        always = [
            SiteRow(name, None, name.rpartition(".")[2], "tensor", "always", size, size)
            for name, size in self._always_sizes().items()
        ]
        return always + [
            SiteRow(site.id, site.block, site.operation, site.kind, *self._tuning(site), site.numel)
            for site in self.outline.sites
        ]

    def _always_sizes(self) -> dict[str, int]:
        return {name: math.prod(self.outline.always_trained[name]) for name in self.always_trained}

    def _tuning(self, site: Site) -> tuple[Tuning, int]:
        """How a site is tuned, and what that costs."""
        if site.id in self.structured:
            return "structured", module_params(site, self.structured_type, self.structured[site.id])
        if site.id in self.vectors:
            return "vector", site.numel
        if site.id in self.sparse:
            return "sparse", self.sparse[site.id].numel()
        return "frozen", 0

    def summary(self) -> str:
        """A plain-text table by operation, then the totals with and without the head."""
        asked = "" if self.budget is None else f", budget {self.budget:,}"
        tau = "" if self.tau is None else f", tau {self.tau:,}"
        params, head = self.trainable_params, ", ".join(self.head) or "none"
        share = params / self.outline.backbone_params if self.outline.backbone_params else 0.0
        totals = (
            f"Trainable parameters: {params:,} without the head ({share:.2%} of the backbone), "
            f"{params + self.head_params:,} with it (head: {head}, {self.head_params:,})."
        )
        title = f"{self.rule} allocation: {self.module_label}{asked}{tau}"
        return "\n".join([title, "", *format_rows(self.table()), "", totals])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the sparse indices as tensors, everything else in its header."""
        tensors = {name: _stored(self.site(name), indices) for name, indices in self.sparse.items()}
        content = _Content(**{each.name: getattr(self, each.name) for each in fields(_Content)})
        save_tensor_file(path, tensors, kind=_KIND, content=content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Allocation:
        """Read what `save` wrote.

        Args:
            path: A file written by `save`.

        Returns:
            The same allocation.

        Raises:
            AdapterFileError: If the file is damaged, incomplete, contradicts itself, or is not an allocation.
        """
        tensors, content = load_tensor_file(path, kind=_KIND, content=_Content, rule=_complaint)
        sparse = {name: indices.to(torch.int64) for name, indices in tensors.items()}
        with naming_damage(path, ArgumentError):
            _refuse_claims(content)
            return cls(sparse=sparse, **{each.name: getattr(content, each.name) for each in fields(_Content)})


@dataclass(frozen=True)
class _Content:
    """What a file holds beside the indices: the attributes of the same names."""

    outline: ModelOutline
    structured: Mapping[str, PositiveInt]
    vectors: tuple[str, ...]
    structured_type: StructuredType | None
    tau: NonNegativeInt | None
    budget: NonNegativeInt | None
    alpha: AtLeastOne | None
    beta: AtLeastOne | None
    rule: str
    always_trained: tuple[str, ...]
    metadata: Mapping[str, Any]


def _refuse_claims(content: _Content) -> None:
    """A rank says how much memory a module takes; one above both sides of every matrix is none that was chosen."""
    longest = max((max(site.shape[:2]) for site in content.outline.sites if site.kind == "matrix"), default=0)
    for name, rank in content.structured.items():
        if rank > longest:
            raise ArgumentError(f"The rank {rank:,} of `{show_name(name)}` is above both sides of every matrix.")


def _stored(site: Site, indices: torch.Tensor) -> torch.Tensor:
    """Half the bytes wherever the site is small enough for 32-bit indices."""
    return indices.to(torch.int32) if site.numel <= _INT32_MAX else indices


def _complaint(name: str, indices: torch.Tensor) -> str | None:
    if indices.dtype in (torch.int32, torch.int64):
        return None
    return f"must hold 32- or 64-bit indices, not {str(indices.dtype).removeprefix('torch.')}"


def _check_structured(allocation: Allocation) -> None:
    if allocation.structured and allocation.structured_type is None:
        raise ArgumentError("`structured_type` must be 'lora' or 'adapter' when sites are structured. Got None.")
    for name, rank in allocation.structured.items():
        _check_kind(allocation.site(name), "matrix", "structured")
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ArgumentError(f"The rank of `{name}` must be a whole number of at least 1. Got {rank!r}.")


def _check_sites(allocation: Allocation) -> None:
    for name in allocation.vectors:
        _check_kind(allocation.site(name), "vector", "tuned whole")
    seen: set[str] = set()
    for name in (*allocation.structured, *allocation.vectors, *allocation.sparse):
        if name in seen:
            raise ArgumentError(f"`{name}` is tuned twice; a site is structured, whole or sparse.")
        seen.add(name)
    for name in allocation.always_trained:
        if name not in allocation.outline.always_trained:
            raise ArgumentError(f"`{show_name(name)}` is not a parameter that the model always trains.")


def _check_kind(site: Site, kind: str, tuning: str) -> None:
    if site.kind != kind:
        raise ArgumentError(f"`{site.id}` is a {site.kind}; only a {kind} can be {tuning}.")


def _check_indices(site: Site, indices: torch.Tensor) -> None:
    if indices.dtype != torch.int64 or indices.dim() != 1 or not indices.numel():
        raise ArgumentError(
            f"The indices of `{site.id}` must be a non-empty 1-D int64 tensor. "
            f"Got {indices.dtype} of shape {tuple(indices.shape)}."
        )
    if indices.numel() > 1 and not bool((indices[1:] > indices[:-1]).all()):
        raise ArgumentError(f"The indices of `{site.id}` must be sorted and without repetition.")
    if int(indices[0]) < 0 or int(indices[-1]) >= site.numel:
        wrong = int(indices[0]) if int(indices[0]) < 0 else int(indices[-1])
        raise ArgumentError(f"Index {wrong} of `{site.id}` lies outside its {site.numel} scalars.")
