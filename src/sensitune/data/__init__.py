"""Images in folders, or the demo's photographs -> labelled splits -> the tensors of a batch.

    a folder, "demo" ──load_data──▶ ImageData(dataset, class_names, info) ──ImageTransform, batches──▶ [B, 3, H, W], [B]

Splits are made once, from a seed, with every class keeping its share, and recorded in `ImageData.info`. A pixel value
x in [0, 255] becomes ``(x / 255 - mean) / std``; the recipe of VTAB-1k resizes the whole image, bicubic, without
augmentation. Images are referred to by path and decoded when they are needed.

Example:
    >>> from sensitune.data import ImageTransform, batches, load_data
    >>> data = load_data("demo")  # doctest: +SKIP
    >>> pixels, labels = next(batches(data.dataset["train"], ImageTransform(98), batch_size=32))  # doctest: +SKIP
    >>> pixels.shape, data.class_names[labels[0]]  # doctest: +SKIP
    (torch.Size([32, 3, 98, 98]), 'functional')
"""

from sensitune.data._batches import PreparedImages, batches
from sensitune.data._demo import DEMO_CLASSES, load_demo_data
from sensitune.data._folder import load_image_folder
from sensitune.data._load import DEMO_NAMES, load_data
from sensitune.data._transform import IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from sensitune.data._types import ImageData

__all__ = [
    "DEMO_CLASSES",
    "DEMO_NAMES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ImageData",
    "ImageTransform",
    "PreparedImages",
    "batches",
    "load_data",
    "load_demo_data",
    "load_image_folder",
]
