"""Images from a folder, a table, a benchmark or the hub -> labelled splits -> the tensors of a batch.

    DataSettings ──load_data──▶ ImageData(dataset, class_names, info) ──ImageTransform, batches──▶ [B, 3, H, W], [B]

A benchmark keeps its published splits and order, and its sizes are checked. Splits that a
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

from sensitune._installed import need

need("vision", what="sensitune.data")  # before what cannot be imported without it

from sensitune.data._batches import PreparedImages, batches
from sensitune.data._fgvc import FGVC_DATASETS
from sensitune.data._folder import load_image_folder
from sensitune.data._image_file import open_image
from sensitune.data._load import load_data
from sensitune.data._settings import DataSettings
from sensitune.data._transform import ImageTransform
from sensitune.data._types import ImageData, labels_of
from sensitune.data._vtab import VTAB_TASKS, VtabTask, load_vtab1k, vtab_task
from sensitune.data._vtab_prepare import fetch_vtab1k, prepare_vtab1k, unpack_vtab1k

__all__ = [
    "FGVC_DATASETS",
    "VTAB_TASKS",
    "DataSettings",
    "ImageData",
    "ImageTransform",
    "PreparedImages",
    "VtabTask",
    "batches",
    "fetch_vtab1k",
    "labels_of",
    "load_data",
    "load_image_folder",
    "load_vtab1k",
    "open_image",
    "prepare_vtab1k",
    "unpack_vtab1k",
    "vtab_task",
]
