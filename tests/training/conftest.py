"""A tiny vision transformer under LoRA and twenty-odd coloured squares."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sensitune.data import ImageData, ImageTransform

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def coloured_square(label: int, generator: np.random.Generator) -> Image.Image:
    """A noisy 16x16 square of the class's colour."""
    noise = generator.integers(-40, 40, size=(16, 16, 3))
    return Image.fromarray(np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8))


def make_split(num_images: int, seed: int, num_classes: int = 3) -> datasets.Dataset:
    generator = np.random.default_rng(seed)
    labels = [index % num_classes for index in range(num_images)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["red", "green", "blue"][:num_classes]),
        }
    )
    images = [coloured_square(label, generator) for label in labels]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


@pytest.fixture
def data() -> ImageData:
    splits = {"train": make_split(14, 0), "validation": make_split(6, 1), "test": make_split(7, 2)}
    return ImageData(datasets.DatasetDict(splits), ("red", "green", "blue"))


@pytest.fixture
def transform() -> ImageTransform:
    return ImageTransform(image_size=16)


def tiny_vit(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(3)
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=num_classes, drop_path_rate=0.1
    )


@pytest.fixture
def make_base() -> Callable[[], nn.Module]:
    """Builds the same model every time it is called."""
    return tiny_vit


@pytest.fixture
def make_model() -> Callable[[], PeftModel]:
    """Builds the same tuned model, dropout and drop-path included, every time it is called."""

    def build() -> PeftModel:
        model = tiny_vit()
        config = LoraConfig(r=2, target_modules=["qkv", "fc1"], lora_dropout=0.1, modules_to_save=["head"])
        return get_peft_model(model, config)

    return build
