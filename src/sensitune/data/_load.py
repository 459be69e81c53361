"""One name for every source of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sensitune.data._datasets import load_hub_dataset, load_saved_dataset, load_webdataset
from sensitune.data._demo import load_demo_data
from sensitune.data._fgvc import FGVC_DATASETS, load_fgvc
from sensitune.data._folder import load_image_folder
from sensitune.data._image_file import raise_pixel_limit
from sensitune.data._settings import DataSettings
from sensitune.data._subset import few_shot, join_validation, limit_train
from sensitune.data._table import TABLE_SUFFIXES, load_table
from sensitune.data._types import ImageData
from sensitune.data._vtab import load_vtab1k
from sensitune.errors import ArgumentError

DEMO_NAMES = ("demo", "elpv")
_BENCHMARKS = {"vtab1k": load_vtab1k, "fgvc": load_fgvc}
_HUB = "hf:"


def load_data(settings: DataSettings | str | os.PathLike[str]) -> ImageData:
    """Load data by name or from files.

    =========================================  ========================================================================
    source                                     what it is
    =========================================  ========================================================================
    ``"demo"``, ``"elpv"``                     the demo's photographs
    ``"vtab1k/cifar"``                         a task of VTAB-1k below `root`; the task's folder itself will do as well
    ``"fgvc/cub"``                             a data set of FGVC below `root`; its folder, named so, will do as well
    ``"hf:owner/name"``, ``"hf:name:config"``  a data set of the Hugging Face hub
    a ``.csv``, ``.json`` or ``.jsonl`` file   a table of paths and labels, relative to `root`
    a path or pattern that ends in ``.tar``    WebDataset shards
    a folder of ``save_to_disk``               a saved data set
    any other folder                           one folder of images per class; one called demo is ``"./demo"``
    =========================================  ========================================================================

    Args:
        settings: Which images; a name or a path is a source with everything else left at its default.

    Returns:
        The data: of the training images as many as asked for, of the test images likewise, or none.

    Raises:
        ArgumentError: If `max_train` is too small, or a setting does not go with the source.
        DataError: If the source cannot be used as it is.
    """
    if not isinstance(settings, DataSettings):
        settings = DataSettings(os.fspath(settings))
    raise_pixel_limit(settings.max_pixels)
    return _limit_test(_limit_train(_load(settings), settings), settings)


def _limit_train(data: ImageData, settings: DataSettings) -> ImageData:
    if settings.train_on_validation and "validation" in data.dataset:
        data = join_validation(data)
    if settings.shots is not None:
        return few_shot(data, settings.shots, seed=settings.split_seed)
    if settings.max_train is not None and data.split_sizes["train"] > settings.max_train:
        return limit_train(data, settings.max_train, seed=settings.split_seed)
    return data


def _limit_test(data: ImageData, settings: DataSettings) -> ImageData:
    splits = dict(data.dataset)
    test = splits.pop("test", None)
    if test is None:
        return data
    if settings.test:
        if settings.max_test is None or len(test) <= settings.max_test:
            return data
        splits["test"] = test.shuffle(seed=settings.split_seed).select(range(settings.max_test))
    return data.with_splits(splits)


def _load(settings: DataSettings) -> ImageData:
    source, seed = settings.source, settings.split_seed
    reading: dict[str, Any] = {"skip_unreadable": settings.skip_unreadable, "max_pixels": settings.max_pixels}
    path = Path(source).expanduser()
    benchmark, name, folder = _benchmark(source, path)
    if benchmark is not None:
        root = settings.root if folder is None else folder
        return _BENCHMARKS[benchmark](name, root=root, train_on_validation=settings.train_on_validation)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return load_table(path, root=settings.root, seed=seed, **reading)
    if settings.root is not None:
        raise ArgumentError(f"`root` goes with vtab1k/TASK, fgvc/NAME and tables of paths, not with {source!r}.")
    if source in DEMO_NAMES:
        size = {} if settings.max_train is None else {"train_size": settings.max_train}
        return load_demo_data(seed=seed, **size)
    if source.startswith(_HUB):
        hub_name, _, config = source.removeprefix(_HUB).partition(":")
        return load_hub_dataset(hub_name, config=config or None, seed=seed)
    if path.suffix.lower() == ".tar":
        return load_webdataset(path, seed=seed)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return load_saved_dataset(path, seed=seed)
    return load_image_folder(path, seed=seed, max_train=settings.max_train, **reading)


def _benchmark(source: str, path: Path) -> tuple[str | None, str, Path | None]:
    """Benchmark, name in it, and the folder above where the source is itself the folder."""
    benchmark, _, name = source.partition("/")
    if benchmark in _BENCHMARKS and name and not path.is_dir():
        return benchmark, name, None
    if (path / "train800.txt").is_file():
        return "vtab1k", path.name, path.parent
    if (path / "train.json").is_file():
        for each in FGVC_DATASETS.values():
            if path.name in (each.name, each.folder):
                return "fgvc", each.name, path.parent
    return None, "", None
