"""The value that says how much each pretrained scalar matters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sensitune._tensor_file import load_tensor_file, save_tensor_file
from sensitune.errors import AdapterFileError, AllocationMismatchError
from sensitune.sensitivity._mapped import MappedScores
from sensitune.sites import ModelOutline, Site

_KIND = "sensitivity"


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """A non-negative score for every scalar that can be tuned.

    Attributes:
        scores: Parameter name -> score tensor of the parameter's shape, on the CPU. Only parameters with ranked sites.
        outline: The model the scores belong to: its ranked sites, head, tokens and frozen parameters.
        metadata: Where the scores come from, JSON-ready: ``criterion``, ``num_batches``, ``batch_sizes``, ``losses``,
            ``seconds``, ``model``, ``backbone_params``, ``score_dtype``, ``versions``, ...

    Raises:
        AllocationMismatchError: If a ranked site has no score, or one of another shape.
    """

    scores: Mapping[str, torch.Tensor]
    outline: ModelOutline
    metadata: Mapping[str, Any]

    def __post_init__(self) -> None:
        for site in self.sites:
            _check_covers(self.scores, site)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The ranked sites, in ranking order for ties."""
        return self.outline.sites

    def score_of(self, site: Site) -> torch.Tensor:
        """The scores of one site, a view of ``site.shape``."""
        return site.of(self.scores[site.parameter])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, the outline and metadata in its header."""
        content = {"outline": self.outline.to_dict(), "metadata": dict(self.metadata)}
        save_tensor_file(path, self.scores, kind=_KIND, content=content)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, lazy: bool = False) -> Sensitivity:
        """Read what `save` wrote.

        Args:
            path: A file written by `save`.
            lazy: True = the scores stay in the file, and each tensor is mapped into memory when it is used: for models
                whose scores do not fit. `allocate` then needs the memory of the largest tensor and of what it selects.
                The file must stay in place. False = all scores are in memory together.

        Returns:
            The same sensitivity.

        Raises:
            AdapterFileError: If the file is damaged, incomplete, or not a sensitivity.
        """
        tensors, content = load_tensor_file(path, kind=_KIND)
        scores = MappedScores(path, list(tensors)) if lazy else tensors
        try:
            return cls(scores, ModelOutline.from_dict(content["outline"]), content["metadata"])
        except (AllocationMismatchError, KeyError, TypeError) as error:
            raise AdapterFileError(f"`{path}` is damaged: {error} Make it again.") from error


def fits(site: Site, tensor: torch.Tensor) -> bool:
    """Whether a tensor of the whole parameter's shape holds the site."""
    inside = site.rows is None or site.rows[1] <= tensor.shape[-1 if site.transposed else 0]
    return inside and tuple(site.of(tensor).shape) == site.shape


def _check_covers(scores: Mapping[str, torch.Tensor], site: Site) -> None:
    score = scores.get(site.parameter)
    if score is None:
        raise AllocationMismatchError(f"The scores lack `{site.parameter}`, which site `{site.id}` needs.")
    if not fits(site, score):
        raise AllocationMismatchError(
            f"The score of `{site.parameter}` has shape {tuple(score.shape)}; site `{site.id}` needs {site.shape}"
            + (f" at rows {site.rows}." if site.rows else ".")
        )
