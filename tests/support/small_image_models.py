"""Image classifiers of transformers as folders, small enough to run in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import SwinConfig, SwinForImageClassification, ViTConfig, ViTForImageClassification

SIZE = 32
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.25, 0.5, 0.5],
}


def small_vit(**changes: Any) -> ViTForImageClassification:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTForImageClassification(ViTConfig(image_size=SIZE, patch_size=8, num_labels=7, **sizes, **changes))
        for parameter in model.parameters():  # transformers' own start leaves biases and positions at zero
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def small_swin() -> SwinForImageClassification:
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SwinForImageClassification(SwinConfig(image_size=SIZE, patch_size=4, **sizes)).eval()


def saved(model: Any, folder: Path, processor: dict[str, Any] | None = PROCESSOR) -> Path:
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
