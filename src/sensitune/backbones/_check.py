"""Whether a backbone can do what is asked of it, found out before anything is computed with it."""

from __future__ import annotations

import torch

from sensitune.backbones._building import build_model, keep_blocks
from sensitune.backbones._load import built_size, timm_name
from sensitune.backbones._rebuild import rebuild_backbone
from sensitune.backbones._transformers import check_drop_path, of_transformers
from sensitune.backbones._types import Backbone
from sensitune.errors import ModelError, SensituneError


def check_backbone(backbone: Backbone, *, num_classes: int, drop_path: float = 0.0) -> None:
    """Make sure that a backbone takes images of its size, and the drop-path rate.

    Args:
        backbone: From `load_backbone`; it is left as it is.
        num_classes: Outputs of its head.
        drop_path: Largest drop-path rate while training, in [0, 1).

    Raises:
        ModelError: If it does not.
    """
    if of_transformers(backbone.spec):
        check_drop_path(backbone.model, drop_path, name=backbone.spec.name)
    elif drop_path > 0:
        _build_without_weights(backbone, num_classes, drop_path)
    size = backbone.image_size
    try:
        with torch.no_grad():
            rebuild_backbone(backbone, num_classes=num_classes).model(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"{backbone.spec.name} cannot take images of {size} × {size} pixels ({reason}). Set another `image_size`."
        ) from error


def _build_without_weights(backbone: Backbone, num_classes: int, drop_path: float) -> None:
    spec = backbone.spec

    def build() -> None:
        model = build_model(
            timm_name(spec),
            num_classes=num_classes,
            image_size=built_size(spec),
            drop_path=drop_path,
            seed=0,
            from_hub=False,
        )
        keep_blocks(model, spec.num_blocks, name=spec.name)

    try:
        with torch.device("meta"):
            build()
    except SensituneError:
        raise
    except Exception:  # some architectures compute with their values while they are built
        build()
