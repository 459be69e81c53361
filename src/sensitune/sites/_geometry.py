"""Where a site lies in the parameter that stores it."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import torch
from torch import nn

from sensitune._schema import NonEmptyText, NonNegativeInt, PositiveInt, Rule

Rows: TypeAlias = Annotated[
    tuple[NonNegativeInt, PositiveInt], Rule("a start and a stop behind it", lambda rows: rows[0] < rows[1])
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A parameter, or a range of its output features, as it is stored.

    Attributes:
        parameter: Qualified name of the parameter, as in ``model.named_parameters()``.
        shape: Shape as stored: of the slice where there are `rows`, not of the whole parameter.
        rows: Range ``(start, stop)`` of output features if this is a slice of the parameter, else None.
        transposed: True when the weight is stored ``[in, out]`` (see `is_conv1d`); `rows` then counts columns.
    """

    parameter: NonEmptyText
    shape: tuple[PositiveInt, ...]
    rows: Rows | None = None
    transposed: bool = False

    @property
    def module(self) -> str:
        """Name of the module that owns the parameter; empty for a parameter of the root module."""
        return self.parameter.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The parameter's own name within its module: ``weight``, ``bias``, ..."""
        return self.parameter.rpartition(".")[2]

    @property
    def numel(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @property
    def out_features(self) -> int:
        """Output features of a matrix."""
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def in_features(self) -> int:
        """Input features (or input channels) of a matrix."""
        return self.shape[0] if self.transposed else self.shape[1]

    @property
    def start(self) -> int:
        """First output feature within the parameter."""
        return self.rows[0] if self.rows else 0

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The view, of `shape`, of a tensor that has the whole parameter's shape."""
        if self.rows is None:
            return tensor
        start, stop = self.rows
        return tensor.narrow(self._rows_dim, start, stop - start)

    def fits(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor can be the whole parameter: it has the rows, and what they cut out has the shape."""
        inside = self.rows is None or (tensor.dim() > 0 and self.rows[1] <= tensor.shape[self._rows_dim])
        return inside and tuple(self.of(tensor).shape) == self.shape

    @property
    def _rows_dim(self) -> int:
        return -1 if self.transposed else 0


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' ``Conv1D`` (GPT-2): a linear layer whose weight is stored ``[in, out]``.

    By type, as a user's own class may have that name; and without importing transformers, which is loaded already
    wherever one of its modules is.

    Args:
        module: Any module.

    Returns:
        Whether it is one.
    """
    found = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return found is not None and isinstance(module, found)
