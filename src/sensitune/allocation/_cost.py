"""What tuning a site costs, and from how many selected scalars on it is tuned as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from sensitune.errors import ArgumentError
from sensitune.sites import Geometry, Site

StructuredType: TypeAlias = Literal["lora", "adapter"]


def module_params(site: Geometry, structured_type: StructuredType | None, rank: int) -> int:
    """Parameters of a structured module on one matrix: LoRA r·(in + out), Adapter 2·r·out + r + out.

    Args:
        site: A matrix site.
        structured_type: ``"lora"``, ``"adapter"``, or None (no module: 0).
        rank: Width r of the module.

    Returns:
        The number of trainable parameters of the module.
    """
    if structured_type == "lora":
        return rank * (site.in_features + site.out_features)
    if structured_type == "adapter":
        return 2 * rank * site.out_features + rank + site.out_features
    return 0


@dataclass(frozen=True)
class Rules:
    """When a site stops being sparse (He et al., ICCV 2023, section 3.3; the numbers are the published ones).

    A site *switches* when its count c of selected scalars reaches its threshold: a matrix gets a module of P parameters
    from c ≥ P / alpha on, a vector of size n is tuned whole from c ≥ n / beta on.

    Attributes:
        structured: What a matrix gets when it switches; None = nothing, matrices stay sparse.
        rank: Rank of a module.
        alpha: See above; at least 1, so that switching never costs less than the scalars it replaces.
        beta: See above; at least 1.
        whole_vectors: False = vectors stay sparse.

    Raises:
        ArgumentError: If a value is outside its range.
    """

    structured: StructuredType | None = "lora"
    rank: int = 8
    alpha: float = 10.0
    beta: float = 5.0
    whole_vectors: bool = True

    def __post_init__(self) -> None:
        check_module(self.structured, self.rank)
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 1 <= value < math.inf:
                raise ArgumentError(
                    f"`{name}` must be a number of at least 1, or a site would be tuned as a whole only after more of "
                    f"its scalars than that costs. Got {value}."
                )

    def switched_params(self, site: Site) -> int | None:
        """Cost of the site once it has switched; None if it cannot switch."""
        if site.kind == "matrix" and self.structured is not None:
            return module_params(site, self.structured, self.rank)
        return site.numel if site.kind == "vector" and self.whole_vectors else None

    def threshold(self, site: Site) -> int:
        """Smallest count of selected scalars at which the site switches; for sites that can."""
        params = self.switched_params(site)
        assert params is not None
        return math.ceil(params / (self.alpha if site.kind == "matrix" else self.beta))


def check_rank(sites: Iterable[Site], structured: str | None, rank: int) -> None:
    """Refuse a rank that no matrix can have.

    Args:
        sites: Where modules may go.
        structured: The kind of module, or None.
        rank: Its rank.

    Raises:
        ArgumentError: If it exceeds the smaller side of every matrix.
    """
    sides = [min(site.in_features, site.out_features) for site in sites if site.kind == "matrix"]
    if structured is not None and sides and rank > max(sides):
        raise ArgumentError(
            f"`rank` must be at most {max(sides):,}, the most that a matrix of the model can have. Got {rank:,}."
        )


def check_module(structured: str | None, rank: int) -> None:
    """Refuse an unknown kind of module or an impossible rank.

    Args:
        structured: The kind of module, or None.
        rank: Its rank.

    Raises:
        ArgumentError: If either is not allowed.
    """
    known = get_args(StructuredType)
    if structured is not None and structured not in known:
        names = ", ".join(repr(name) for name in known)
        raise ArgumentError(f"`structured` must be {names} or None (sparse only). Got {structured!r}.")
    if rank < 1:
        raise ArgumentError(f"`rank` must be at least 1. Got {rank}.")
