"""Images from a folder, a table, a benchmark or the hub -> labelled splits -> the tensors of a batch.

    DataSettings ──load_data──▶ ImageData(dataset, class_names, info) ──ImageTransform, batches──▶ [B, 3, H, W], [B]

A benchmark keeps its published splits and order (`load_vtab1k`, `load_fgvc`), and its sizes are checked. Splits that a
source does not have are made once, from a seed, with every class keeping its share, and recorded in `ImageData.info`.
A pixel value x in [0, 255] becomes ``(x / 255 - mean) / std``; the recipe of VTAB-1k resizes the whole image, bicubic,
without augmentation. Images are referred to by path and decoded when they are needed.

Example:
    >>> from sensitune.data import ImageTransform, batches, load_data
    >>> data = load_data("demo")  # doctest: +SKIP
    >>> pixels, labels = next(batches(data.dataset["train"], ImageTransform(98), batch_size=32))  # doctest: +SKIP
    >>> pixels.shape, data.class_names[labels[0]]  # doctest: +SKIP
    (torch.Size([32, 3, 98, 98]), 'functional')
"""

from sensitune.data._batches import PreparedImages, batches
from sensitune.data._datasets import from_datasets, load_hub_dataset, load_saved_dataset, load_webdataset
from sensitune.data._demo import DEMO_CLASSES, load_demo_data
from sensitune.data._fgvc import FGVC_DATASETS, FgvcDataset, fgvc_transform, load_fgvc
from sensitune.data._folder import load_image_folder
from sensitune.data._load import DEMO_NAMES, load_data
from sensitune.data._settings import DataSettings
from sensitune.data._subset import few_shot, join_validation, limit_train
from sensitune.data._table import load_table
from sensitune.data._transform import IMAGENET_MEAN, IMAGENET_STD, ImageTransform
from sensitune.data._types import ImageData
from sensitune.data._vtab import VTAB_TASKS, VtabGroup, VtabTask, load_vtab1k, vtab_group_means, vtab_task
from sensitune.data._vtab_prepare import fetch_vtab1k, prepare_vtab1k, unpack_vtab1k

__all__ = [
    "DEMO_CLASSES",
    "DEMO_NAMES",
    "FGVC_DATASETS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "VTAB_TASKS",
    "DataSettings",
    "FgvcDataset",
    "ImageData",
    "ImageTransform",
    "PreparedImages",
    "VtabGroup",
    "VtabTask",
    "batches",
    "fetch_vtab1k",
    "few_shot",
    "fgvc_transform",
    "from_datasets",
    "join_validation",
    "limit_train",
    "load_data",
    "load_demo_data",
    "load_fgvc",
    "load_hub_dataset",
    "load_image_folder",
    "load_saved_dataset",
    "load_table",
    "load_vtab1k",
    "load_webdataset",
    "prepare_vtab1k",
    "unpack_vtab1k",
    "vtab_group_means",
    "vtab_task",
]
