"""A model name or a weight file -> a backbone that is ready to be tuned (signatures first, bodies follow)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sensitune.backbones._types import Backbone, BackboneSpec


def load_backbone(
    spec: BackboneSpec | str, *, num_classes: int, drop_path: float = 0.0, seed: int = 0, keep_head: bool = False
) -> Backbone:
    """Build and fill a backbone; keep_head=True takes the head of a Sensitune checkpoint instead of a new one."""
    raise NotImplementedError


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the model's tensors, head excluded."""
    raise NotImplementedError


def save_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    spec: BackboneSpec,
    class_names: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,  # ImageTransform.to_dict()
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a merged model as one safetensors file that load_backbone reads."""
    raise NotImplementedError


def read_checkpoint_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """{"spec", "class_names", "preprocessing", "metadata", "weights_hash"} of save_checkpoint's file."""
    raise NotImplementedError


__all__ = ["Backbone", "BackboneSpec", "load_backbone", "read_checkpoint_metadata", "save_checkpoint", "weights_hash"]
