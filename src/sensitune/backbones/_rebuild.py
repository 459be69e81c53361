"""A backbone once more, from the weights in memory: no file is read and nothing is hashed again."""

from __future__ import annotations

import copy
from dataclasses import replace

from sensitune.backbones._building import build_model, keep_blocks
from sensitune.backbones._load import built_size, timm_name
from sensitune.backbones._transformers import of_transformers, with_drop_path
from sensitune.backbones._types import Backbone
from sensitune.sites import name_head


def rebuild_backbone(backbone: Backbone, *, num_classes: int, drop_path: float = 0.0) -> Backbone:
    """The model that `load_backbone` would give for the same spec, for someone who changes it.

    Args:
        backbone: From `load_backbone` without drop-path, as it was loaded: not tuned, not trained.
        num_classes: Outputs of its head.
        drop_path: Largest drop-path rate of the blocks while training, in [0, 1), grown linearly from 0.

    Returns:
        The same backbone with a model of its own, in eval mode on the CPU.
    """
    if drop_path == 0:
        return replace(backbone, model=copy.deepcopy(backbone.model))
    spec = backbone.spec
    if of_transformers(spec):
        model = with_drop_path(backbone.model, drop_path, name=spec.name)
    else:
        model = build_model(
            timm_name(spec),
            num_classes=num_classes,
            image_size=built_size(spec),
            drop_path=drop_path,
            seed=0,  # every weight is replaced
            from_hub=False,
        )
    if spec.head is not None:
        name_head(model, spec.head)
    keep_blocks(model, spec.num_blocks, name=spec.name)
    model.load_state_dict(backbone.model.state_dict())
    return replace(backbone, model=model)
