"""What a run's adapter folder says about itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel

from sensitune.training import AdapterManifest, AdapterOrigin

if TYPE_CHECKING:
    from sensitune.runs._run import Run


def manifest_of(run: Run, tuned: PeftModel) -> AdapterManifest:
    """Enough to predict, and nothing about this machine.

    Args:
        run: The run.
        tuned: What it trains.

    Returns:
        The manifest.
    """
    backbone, data = run.ingredients.backbone, run.ingredients.data
    spec = backbone.spec
    if spec.checkpoint is not None:
        spec = replace(spec, checkpoint=Path(spec.checkpoint).name)
    outline = run.ingredients.outline()
    trained = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    origin = AdapterOrigin.of(
        data,
        method=run.settled.method.name,
        seed=run.config.seed,
        trainable_params=trained - outline.head_params,
        head_params=outline.head_params,
        backbone_params=outline.backbone_params,
    )
    return AdapterManifest(spec, backbone.weights_hash, data.class_names, run.ingredients.transform, origin)
