"""Splits that a source of images lacks, made from those it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sensitune.data._build import LabelledFile
from sensitune.data._splits import take_stratified
from sensitune.errors import ArgumentError, DataError

WHOLE = ""  # the split name of a source that has no splits
SPLIT_ORDER = ("train", "validation", "test")


def check_fractions(validation: float, test: float) -> None:
    """Refuse shares that leave nothing for training."""
    if min(validation, test) < 0 or validation + test >= 1:
        raise ArgumentError(
            f"`validation_fraction` and `test_fraction` must be at least 0 and leave some for training. "
            f"Got {validation} and {test}."
        )


def divide(
    splits: Mapping[str, Sequence[LabelledFile]], *, validation_fraction: float, test_fraction: float, seed: int
) -> tuple[dict[str, list[LabelledFile]], str]:
    """Fill in the splits that a source does not have, and say in words what was done.

    Args:
        splits: Split name -> its files; `WHOLE` stands for all of a source without splits.
        validation_fraction: Share of what is split that becomes the validation split where there is none.
        test_fraction: Share of a source without splits that becomes the test split.
        seed: Of the draw.

    Returns:
        The splits in their usual order, and how they came about.

    Raises:
        DataError: If there are too few files for a split.
    """
    found = {name: list(files) for name, files in splits.items()}
    if WHOLE not in found:
        how = "as in the folder" if "test" in found else "as in the folder, no test split"
        if "validation" in found or not validation_fraction:
            return in_order(found), how
        validation, train = _hold_out(found["train"], validation_fraction, len(found["train"]), seed, "validation")
        made = found | {"train": train, "validation": validation}
        return in_order(made), f"{how}; validation is a stratified {validation_fraction:g} of train"
    files = found[WHOLE]
    test, rest = _hold_out(files, test_fraction, len(files), seed, "test")
    validation, train = _hold_out(rest, validation_fraction, len(files), seed, "validation")
    made = {"train": train, "validation": validation, "test": test}
    how = f"stratified; validation is {validation_fraction:g} and test {test_fraction:g} of the whole"
    return {name: each for name, each in made.items() if each}, how


def _hold_out(
    files: list[LabelledFile], fraction: float, whole: int, seed: int, name: str
) -> tuple[list[LabelledFile], list[LabelledFile]]:
    taken, rest = take_stratified(files, round(fraction * whole), seed=seed, leave=1)
    if fraction and not taken:
        raise DataError(
            f"{len(files)} images are too few for a {name} split of {fraction:g}: it would hold none. "
            f"Add images, or set `{name}_fraction` to 0."
        )
    return taken, rest


def in_order(splits: Mapping[str, list[LabelledFile]]) -> dict[str, list[LabelledFile]]:
    """Train, validation, test."""
    return {name: splits[name] for name in SPLIT_ORDER if name in splits}


def check_max_train(max_train: int, num_classes: int) -> None:
    """Refuse fewer training images than classes."""
    if max_train < num_classes:
        raise ArgumentError(f"`max_train` must be at least {num_classes}, one image per class. Got {max_train}.")
