"""What is done to one site, as a value that fits into a JSON configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

Form: TypeAlias = Literal["lora", "adapter", "sparse", "whole"]


@dataclass(frozen=True, slots=True)
class SitePlan:
    """How one site is tuned.

    Attributes:
        parameter: Qualified name of the parameter that holds the site.
        form: ``"lora"``, ``"adapter"``, ``"sparse"`` or ``"whole"``.
        size: Rank of a LoRA or Adapter; number of entries of a sparse site; number of scalars of a whole one.
        shape: Shape of the site as stored.
        rows: Range of output features if the site is a slice of the parameter.
        transposed: True when the weight is stored ``[in, out]``.
        reads_input: True for an Adapter that reads the layer's input instead of its output (the published SPT does so
            for the attention output projection).
    """

    parameter: str
    form: Form
    size: int
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    transposed: bool = False
    reads_input: bool = False

    @property
    def module(self) -> str:
        """Name of the module that owns the parameter."""
        return self.parameter.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The parameter's own name within its module."""
        return self.parameter.rpartition(".")[2]

    @property
    def numel(self) -> int:
        """Number of scalars of the site."""
        return math.prod(self.shape)

    @property
    def out_features(self) -> int:
        """Output features of a matrix site."""
        return self.shape[-1] if self.transposed else self.shape[0]

    @property
    def in_features(self) -> int:
        """Input features (or input channels) of a matrix site."""
        return self.shape[0] if self.transposed else self.shape[1]

    @property
    def start(self) -> int:
        """First output feature of the site within its parameter."""
        return self.rows[0] if self.rows else 0

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """The site's view of a tensor that has the whole parameter's shape."""
        if self.rows is None:
            return parameter
        return parameter.narrow(-1 if self.transposed else 0, self.rows[0], self.rows[1] - self.rows[0])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description that leaves out what has its default."""
        described: dict[str, Any] = {
            "parameter": self.parameter,
            "form": self.form,
            "size": self.size,
            "shape": list(self.shape),
        }
        if self.rows:
            described["rows"] = list(self.rows)
        return described | {key: True for key in ("transposed", "reads_input") if getattr(self, key)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SitePlan:
        """Rebuild a plan from `to_dict`."""
        fields = dict(data)
        fields["shape"] = tuple(fields["shape"])
        fields["rows"] = tuple(fields["rows"]) if fields.get("rows") else None
        return cls(**fields)
