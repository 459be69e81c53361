"""The value that says how much each pretrained scalar matters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from sensitune._tensor_file import finite_floats, load_tensor_file, naming_damage, save_tensor_file
from sensitune.errors import AllocationMismatchError, ArgumentError
from sensitune.sensitivity._renamed import RenamedTensors
from sensitune.sites import ModelOutline, Site

_KIND = "sensitivity"
_GRADIENT = "gradient:"  # the name of a gradient in the file begins so
_HALVES = ("first half:", "second half:")  # likewise of a half's score
Halves: TypeAlias = tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """A non-negative score for every scalar that can be tuned.

    Attributes:
        scores: Parameter name -> score tensor of the parameter's shape, on the CPU. Only parameters with ranked sites.
        outline: The model the scores belong to: its ranked sites, head, tokens and frozen parameters.
        metadata: Where the scores come from, JSON-ready: ``criterion``, ``num_batches``, ``batch_sizes``, ``losses``,
            ``seconds``, ``model``, ``backbone_params``, ``score_dtype``, ``versions``, ...
        gradients: Parameter name -> Σ over batches of the mean loss's gradient, float32, of the parameter's shape, on
            the CPU; None = not kept. Divided by ``metadata["num_batches"]`` it is the mean gradient.
        halves: The scores of the first, third, ... batch alone, and of the others, bfloat16; None = not kept.

    Raises:
        AllocationMismatchError: If a ranked site has no score, or one of another shape; likewise a gradient or a half.
    """

    scores: Mapping[str, torch.Tensor]
    outline: ModelOutline
    metadata: Mapping[str, Any]
    gradients: Mapping[str, torch.Tensor] | None = None
    halves: Halves | None = None

    def __post_init__(self) -> None:
        for site in self.sites:
            _check_covers(self.scores, site, "score")
            if self.gradients is not None:
                _check_covers(self.gradients, site, "gradient")
            for half in self.halves or ():
                _check_covers(half, site, "half score")

    @property
    def sites(self) -> tuple[Site, ...]:
        """The ranked sites, in ranking order for ties."""
        return self.outline.sites

    def score_of(self, site: Site) -> torch.Tensor:
        """The scores of one site, a view of ``site.shape``."""
        return site.of(self.scores[site.parameter])

    def gradient_of(self, site: Site) -> torch.Tensor:
        """The summed gradient of one site, a view of ``site.shape``.

        Args:
            site: One of `sites`.

        Returns:
            Σ over batches of the mean loss's gradient, float32.

        Raises:
            ArgumentError: If the gradients were not kept.
        """
        if self.gradients is None:
            raise ArgumentError(
                f"This sensitivity holds no gradients, so none of `{site.id}`. Make it again with "
                "`estimate_sensitivity(..., keep_gradients=True)`."
            )
        return site.of(self.gradients[site.parameter])

    def of_halves(self) -> tuple[Sensitivity, Sensitivity]:
        """What the batches of each half alone would have given, without gradients.

        Returns:
            The sensitivity of the first, third, ... batch, and that of the others.

        Raises:
            ArgumentError: If the halves were not kept.
        """
        if self.halves is None:
            raise ArgumentError(
                "This sensitivity holds no scores of half the batches. Make it again with "
                "`estimate_sensitivity(..., keep_halves=True)`."
            )
        first, second = (replace(self, scores=half, gradients=None, halves=None) for half in self.halves)
        return first, second

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, the outline and metadata in its header."""
        gradients = self.gradients or {}
        tensors = dict(self.scores) | {_GRADIENT + name: gradient for name, gradient in gradients.items()}
        for prefix, half in zip(_HALVES, self.halves or (), strict=False):
            tensors |= {prefix + name: score for name, score in half.items()}
        content = _Content(self.outline, self.metadata, tuple(gradients), self.halves is not None)
        save_tensor_file(path, tensors, kind=_KIND, content=content)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, lazy: bool = False) -> Sensitivity:
        """Read what `save` wrote.

        Args:
            path: A file written by `save`.
            lazy: True = the tensors stay in the file, and each is mapped into memory when it is used: for models whose
                scores do not fit. All are read once, one after the other, to be compared with their checksums.
                `allocate` then needs the memory of the largest tensor and of what it selects. The file must stay in
                place. False = all are in memory together.

        Returns:
            The same sensitivity.

        Raises:
            AdapterFileError: If the file is damaged, incomplete, or not a sensitivity.
        """
        tensors, content = load_tensor_file(path, kind=_KIND, content=_Content, rule=_complaint, lazy=lazy)
        kept = {name: _GRADIENT + name for name in content.gradients}
        prefixes = _HALVES if content.halves else ()
        parts = [
            {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)} for prefix in prefixes
        ]
        stored = {name for table in (kept, *parts) for name in table.values()}
        scored = {name: name for name in tensors if name not in stored}
        with naming_damage(path, AllocationMismatchError, KeyError):
            gradients = RenamedTensors(tensors, kept) if kept else None
            first, second = [RenamedTensors(tensors, part) for part in parts] or (None, None)
            halves = None if first is None or second is None else (first, second)
            return cls(RenamedTensors(tensors, scored), content.outline, content.metadata, gradients, halves)


@dataclass(frozen=True)
class _Content:
    """What a file holds beside the tensors."""

    outline: ModelOutline
    metadata: Mapping[str, Any]
    gradients: tuple[str, ...]
    halves: bool = False


def _check_covers(tensors: Mapping[str, torch.Tensor], site: Site, what: str) -> None:
    tensor = tensors.get(site.parameter)
    if tensor is None:
        raise AllocationMismatchError(f"The {what}s lack `{site.parameter}`, which site `{site.id}` needs.")
    if not site.fits(tensor):
        raise AllocationMismatchError(
            f"The {what} of `{site.parameter}` has shape {tuple(tensor.shape)}; site `{site.id}` needs {site.shape}"
            + (f" at rows {site.rows}." if site.rows else ".")
        )


def _complaint(name: str, tensor: torch.Tensor) -> str | None:
    if complaint := finite_floats(name, tensor):
        return complaint
    negative = not name.startswith(_GRADIENT) and tensor.numel() > 0 and float(tensor.min()) < 0
    return "holds a negative score" if negative else None
