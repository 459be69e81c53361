"""The demo's photographs: solar cells under electroluminescence, from the package ``elpv-dataset``."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from sensitune._installed import install_line
from sensitune.data._build import LabelledFile, build_dataset
from sensitune.data._splits import shuffled, take_stratified
from sensitune.data._types import ImageData
from sensitune.errors import ArgumentError, DataError, MissingPackageError

DEMO_CLASSES = ("functional", "possibly defective", "likely defective", "defective")
_LICENCE = "CC BY-NC-SA 4.0; read from the installed package, never redistributed"


def load_demo_data(
    *, seed: int = 0, train_size: int = 800, validation_size: int = 200, test_size: int | None = None
) -> ImageData:
    """2,624 photographs of solar cells in 4 degrees of defect, in a fixed stratified split.

    An expert's defect probability of 0, 1/3, 2/3 or 1 is the class. The photographs are grayscale, 300×300 pixels
    (Buerhop-Lukas et al., *A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence
    Imagery*, EU PVSEC 2018). Files of the same content are kept once.

    Args:
        seed: Of the split and of the training order.
        train_size: Number of training images, at least one per class.
        validation_size: Number of validation images.
        test_size: Number of test images; None is all the rest.

    Returns:
        The data with the splits ``train``, ``validation`` and ``test``.

    Raises:
        ArgumentError: If a size is too small, or they exceed what there is.
        MissingPackageError: If ``elpv-dataset`` is not installed.
        DataError: If it is not what is expected.
    """
    found = _labelled_files(_demo_folder())
    files = _without_duplicates(found)
    _check_sizes(train_size, validation_size, test_size, available=len(files))
    train, rest = take_stratified(files, train_size, seed=seed, at_least=1)
    validation, rest = take_stratified(rest, validation_size, seed=seed)
    test = rest if test_size is None else take_stratified(rest, test_size, seed=seed)[0]
    splits = {"train": shuffled(train, seed=seed), "validation": validation, "test": test}
    info = {
        "source": f"elpv-dataset {version('elpv-dataset')}",
        "split": "stratified",
        "seed": seed,
        "split_sizes": {name: len(each) for name, each in splits.items()},
        "train_order": f"shuffled with seed {seed}",
        "duplicates_removed": len(found) - len(files),
        "licence": _LICENCE,
    }
    return ImageData(build_dataset(splits, DEMO_CLASSES), DEMO_CLASSES, info)


def _demo_folder() -> Path:
    """Found without importing the package."""
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise MissingPackageError(
            f"The demo's photographs need the package elpv-dataset. Install the extra: {install_line('demo')}"
        )
    return Path(package.origin).parent / "data"


def _labelled_files(folder: Path) -> list[LabelledFile]:
    """One line per photograph: path, defect probability, type of cell."""
    files = []
    for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines():
        path, probability, _ = line.split()
        label = round(3 * float(probability))
        if not 0 <= label < len(DEMO_CLASSES):
            raise DataError(f"elpv-dataset gives {path} the defect probability {probability}. Expected 0 to 1.")
        files.append(LabelledFile(folder / path, label))
    return files


def _without_duplicates(files: Iterable[LabelledFile]) -> list[LabelledFile]:
    """The same picture in two splits would let the test see the training."""
    unique: dict[bytes, LabelledFile] = {}
    for file in files:
        unique.setdefault(hashlib.sha256(file.path.read_bytes()).digest(), file)
    return list(unique.values())


def _check_sizes(train: int, validation: int, test: int | None, *, available: int) -> None:
    if train < len(DEMO_CLASSES):
        raise ArgumentError(f"`train_size` must be at least {len(DEMO_CLASSES)}, one image per class. Got {train}.")
    if validation < 1 or (test is not None and test < 1):
        raise ArgumentError(f"`validation_size` and `test_size` must be at least 1. Got {validation} and {test}.")
    if (total := train + validation + (1 if test is None else test)) > available:
        raise ArgumentError(f"The demo has {available:,} images; the splits ask for {total:,}. Lower `train_size`.")
