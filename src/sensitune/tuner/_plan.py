"""What is done to one site, as a value that fits into a JSON configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sensitune._schema import PositiveInt, read, shorten
from sensitune.errors import AdapterFileError
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
    """

    form: Form
    size: PositiveInt
    reads_input: bool = False

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
        AdapterFileError: If it is no mapping, or a plan lacks a key, has one too many, or a value that it cannot have.
    """
    if not isinstance(site_plan, Mapping):
        raise AdapterFileError(f"`site_plan` must map site ids to plans. Got {shorten(site_plan)}.")
    return {
        site: read(SitePlan, plan, where=f"site_plan[{site}]", error=AdapterFileError)
        for site, plan in site_plan.items()
    }
