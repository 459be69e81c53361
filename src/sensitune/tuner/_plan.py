"""What is done to one site, as a value that fits into a JSON configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sensitune._schema import NonEmptyText, PositiveInt, read
from sensitune.allocation import module_params
from sensitune.errors import ArgumentError
from sensitune.sites import Geometry

Form: TypeAlias = Literal["lora", "adapter", "sparse", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan(Geometry):
    """How one site is tuned, and where it lies.

    Attributes:
        form: ``"lora"``, ``"adapter"``, ``"sparse"`` or ``"whole"``.
        size: Rank of a LoRA or Adapter; number of entries of a sparse site; number of scalars of a whole one.
        reads_input: True for an Adapter that reads the layer's input instead of its output (the published SPT does so
            for the attention output projection).

    Raises:
        ArgumentError: If the size or the form does not go with the shape.
    """

    form: Form
    size: PositiveInt
    reads_input: bool = False

    def __post_init__(self) -> None:
        fits = {"sparse": self.size <= self.numel, "whole": self.size == self.numel}.get(self.form, len(self.shape) > 1)
        if not fits:
            raise ArgumentError(
                f"A plan of the form {self.form} and the size {self.size:,} does not go with the shape "
                f"{list(self.shape)} of `{self.parameter}`."
            )

    @property
    def num_params(self) -> int:
        """Scalars that it trains."""
        form = self.form
        return module_params(self, form, self.size) if form == "lora" or form == "adapter" else self.size

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


def read_plans(site_plan: Mapping[str, Any]) -> dict[str, SitePlan]:
    """The plans of a configuration.

    Args:
        site_plan: Site id -> what `SitePlan.to_dict` returned.

    Returns:
        Site id -> plan.

    Raises:
        ArgumentError: If it is no mapping, or a plan lacks a key, has one too many, or a value that it cannot have.
    """
    return dict(read(_SitePlans, {"site_plan": site_plan}, error=ArgumentError).site_plan)


@dataclass(frozen=True)
class _SitePlans:
    """Site id -> plan, under the name that a configuration has for it."""

    site_plan: Mapping[NonEmptyText, SitePlan]
