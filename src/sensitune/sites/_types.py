"""The values that describe where a model can be tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sensitune._schema import NonEmptyText, NonNegativeInt, PositiveInt
from sensitune.sites._geometry import Geometry

Kind: TypeAlias = Literal["matrix", "vector", "tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site(Geometry):
    """One place of a model that can be tuned.

    Attributes:
        id: ``blocks.0.attn.qkv.weight[q]`` for a slice of a fused projection, the parameter's name otherwise.
        kind: ``"matrix"`` (linear layer or 1×1 convolution; may get a LoRA or an Adapter), ``"vector"``
            (1-D, may be tuned whole) or ``"tensor"`` (anything else; sparse only).
        block: Index of the block, counted over the whole model, that the site belongs to; None outside the blocks.
        operation: Short name of what the site does: ``q``, ``k``, ``v``, ``proj``, ``fc1``, ``fc2``, ``norm1``, ...
    """

    id: NonEmptyText
    kind: Kind
    block: NonNegativeInt | None
    operation: str


@dataclass(frozen=True, slots=True)
class ModelOutline:
    """A model as the method sees it: what is ranked, what is always trained, what stays frozen, and why.

    Attributes:
        sites: The ranked sites, in the order of ``model.named_parameters()``, slices in row order.
        head: Names of the modules that form the task's classifier; trained whole, never counted in a budget.
        head_params: Number of scalars in the head.
        always_trained: Parameter name -> shape of the class token and its kin; trained whole, counted in a budget.
        frozen: Parameter name -> the reason why it is neither ranked nor trained.
        backbone_params: Number of scalars of the model without the head.
    """

    sites: tuple[Site, ...]
    head: tuple[str, ...]
    head_params: NonNegativeInt
    always_trained: Mapping[str, tuple[PositiveInt, ...]]
    frozen: Mapping[str, str]
    backbone_params: NonNegativeInt

    @property
    def always_trained_params(self) -> int:
        """Number of scalars that are trained whatever the budget."""
        return sum(math.prod(shape) for shape in self.always_trained.values())
