"""One name for every source of images."""

from __future__ import annotations

import os
from pathlib import Path

from sensitune.data._datasets import load_hub_dataset, load_saved_dataset, load_webdataset
from sensitune.data._demo import load_demo_data
from sensitune.data._fgvc import FGVC_DATASETS, load_fgvc
from sensitune.data._folder import load_image_folder
from sensitune.data._subset import few_shot, join_validation, limit_train
from sensitune.data._table import TABLE_SUFFIXES, load_table
from sensitune.data._types import ImageData
from sensitune.data._vtab import load_vtab1k
from sensitune.errors import ArgumentError

DEMO_NAMES = ("demo", "elpv")
_BENCHMARKS = {"vtab1k": load_vtab1k, "fgvc": load_fgvc}
_HUB = "hf:"


def load_data(
    source: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    train_on_validation: bool = False,
    seed: int = 0,
    max_train: int | None = None,
    shots: int | None = None,
    skip_unreadable: bool = False,
) -> ImageData:
    """Load data by name or from files.

    | source | what it is |
    |---|---|
    | ``"demo"``, ``"elpv"`` | the demo's photographs |
    | ``"vtab1k/cifar"`` | a task of VTAB-1k below `root`; the task's folder itself will do as well |
    | ``"fgvc/cub"`` | a data set of FGVC below `root`; its folder, named so, will do as well |
    | ``"hf:owner/name"``, ``"hf:name:config"`` | a data set of the Hugging Face hub |
    | a ``.csv``, ``.json`` or ``.jsonl`` file | a table of paths and labels, relative to `root` |
    | a path or pattern that ends in ``.tar`` | WebDataset shards |
    | a folder of ``save_to_disk`` | a saved data set |
    | any other folder | one folder of images per class; one called demo is ``"./demo"`` |

    Args:
        source: One of these.
        root: Folder of a benchmark's data (None: ``data/vtab-1k``, ``data/fgvc``) or of a table's images (None: the
            table's own); other sources have none.
        train_on_validation: Train on the training and validation images together, as for the run that is tested after
            its settings were chosen.
        seed: Of a split that has to be made, of the training order and of a choice of training images.
        max_train: Keep at most so many training images; None keeps all (for the demo, 800).
        shots: Keep exactly so many training images of every class; None keeps all.
        skip_unreadable: Leave damaged images of a folder or a table out and count them, instead of refusing it.

    Returns:
        The data.

    Raises:
        ArgumentError: If `max_train` or `shots` is too small, both are given, or an option does not go with the source.
        DataError: If the source cannot be used as it is.
    """
    if max_train is not None and shots is not None:
        raise ArgumentError(f"`max_train` and `shots` both choose the training images. Got {max_train} and {shots}.")
    data = _load(os.fspath(source), root, train_on_validation, seed, max_train, skip_unreadable)
    if train_on_validation and "validation" in data.dataset:
        data = join_validation(data)
    if shots is not None:
        return few_shot(data, shots, seed=seed)
    if max_train is not None and data.split_sizes["train"] > max_train:
        return limit_train(data, max_train, seed=seed)
    return data


def _load(
    source: str,
    root: str | os.PathLike[str] | None,
    train_on_validation: bool,
    seed: int,
    max_train: int | None,
    skip_unreadable: bool,
) -> ImageData:
    path = Path(source).expanduser()
    benchmark, name, folder = _benchmark(source, path)
    if benchmark is not None:
        chosen = root if folder is None else folder
        return _BENCHMARKS[benchmark](name, root=chosen, train_on_validation=train_on_validation)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return load_table(path, root=root, seed=seed, skip_unreadable=skip_unreadable)
    if root is not None:
        raise ArgumentError(f"`root` goes with vtab1k/TASK, fgvc/NAME and tables of paths, not with {source!r}.")
    if source in DEMO_NAMES:
        return load_demo_data(seed=seed) if max_train is None else load_demo_data(seed=seed, train_size=max_train)
    if source.startswith(_HUB):
        hub_name, _, config = source.removeprefix(_HUB).partition(":")
        return load_hub_dataset(hub_name, config=config or None, seed=seed)
    if path.suffix == ".tar":
        return load_webdataset(path, seed=seed)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return load_saved_dataset(path, seed=seed)
    return load_image_folder(path, seed=seed, max_train=max_train, skip_unreadable=skip_unreadable)


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
