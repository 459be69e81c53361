"""What a run's adapter folder says about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import PeftModel

from sensitune.backbones import public_spec
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
    spec = public_spec(backbone.spec)
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
