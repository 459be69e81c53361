"""Where each task of VTAB-1k comes from: the facts of its official construction, as a table.

A task takes its first 800 training images, the first 200 of its validation part and all of its test part out of a data
set of TensorFlow Datasets. Where that has no validation or test split of its own, they are shares of another. Labels of
the structured tasks are computed from what is annotated (Zhai et al., arXiv:1910.04867, appendix A).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """A share of a split, in percent of its rows, rounded down."""

    split: str
    start: int = 0
    stop: int = 100

    def rows(self, count: int) -> range:
        """Positions of the part in a split of `count` rows."""
        return range(count * self.start // 100, count * self.stop // 100)


@dataclass(frozen=True, slots=True)
class VtabSource:
    """How one task is made.

    Attributes:
        builder: Name of the data set in TensorFlow Datasets, with its configuration.
        parts: Training, validation and test part.
        label: Class id of a row.
        pixel_scale: What the pixels are multiplied with; 255 for a data set of ones and zeros.
        manual: What a person has to download, and where to put it; empty for the others.
        marker: A file or folder that is there once that was done, below the folder for such downloads.
        hint: What to look at if the data set cannot be prepared.
    """

    builder: str
    parts: tuple[Part, Part, Part]
    label: Callable[[Row], int]
    pixel_scale: int = 1
    manual: str = ""
    marker: str = ""
    hint: str = ""


def field(name: str, *, merged: float = 1) -> Callable[[Row], int]:
    """A class id as it is annotated, or with so many neighbouring ones merged into one."""
    return lambda row: int(np.float32(row[name]) // np.float32(merged))


def interval(value: float, thresholds: tuple[float, ...]) -> int:
    """The last of the ascending thresholds that lies strictly below the value."""
    return sum(threshold < value for threshold in thresholds) - 1


def object_count(row: Row) -> int:
    """CLEVR: 3 to 10 objects."""
    return len(row["objects"]["size"]) - 3


def object_distance(row: Row) -> int:
    """CLEVR: depth of the closest object."""
    return interval(np.min(row["objects"]["pixel_coords"][:, 2]), (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0))


def vehicle_distance(row: Row) -> int:
    """KITTI: depth in metres of the closest car, van or truck (types 0 to 2); the last class has none."""
    types, depths = np.asarray(row["objects"]["type"]), np.asarray(row["objects"]["location"])[:, 2]
    return interval(min([*depths[types < 3], 1000.0]), (-100.0, 8.0, 20.0, 999.0))


_OWN: Final = (Part("train"), Part("validation"), Part("test"))
_NINE_TO_ONE: Final = (Part("train", 0, 90), Part("train", 90), Part("test"))
_SIX_TWO_TWO: Final = (Part("train", 0, 60), Part("train", 60, 80), Part("train", 80))
_EIGHT_ONE_ONE: Final = (Part("train", 0, 80), Part("train", 80, 90), Part("train", 90))
_HALF_OF_TEST: Final = (Part("train"), Part("test", 0, 50), Part("test", 50))
_CLEVR: Final = (Part("train", 0, 90), Part("train", 90), Part("validation"))
_LABEL: Final = field("label")

VTAB_SOURCES: Final[Mapping[str, VtabSource]] = MappingProxyType({
    "cifar": VtabSource("cifar100", _NINE_TO_ONE, _LABEL),
    "caltech101": VtabSource("caltech101", _NINE_TO_ONE, _LABEL),
    "dtd": VtabSource("dtd", _OWN, _LABEL),
    "oxford_flowers102": VtabSource("oxford_flowers102", _OWN, _LABEL),
    "svhn": VtabSource("svhn_cropped", _NINE_TO_ONE, _LABEL),
    "sun397": VtabSource(
        "sun397/tfds", _OWN, _LABEL,
        hint="SUN397's images are encoded anew while they are prepared, and one of them "
        "(t/track/outdoor/sun_aophkoiosslinihb.jpg) only OpenCV can decode: "
        "install tensorflow and opencv-python-headless.",
    ),
    "oxford_iiit_pet": VtabSource(
        "oxford_iiit_pet", (Part("train", 0, 80), Part("train", 80), Part("test")), _LABEL
    ),
    "patch_camelyon": VtabSource("patch_camelyon", _OWN, _LABEL),
    "eurosat": VtabSource("eurosat/rgb", _SIX_TWO_TWO, _LABEL),
    "resisc45": VtabSource(
        "resisc45", _SIX_TWO_TWO, _LABEL, marker="NWPU-RESISC45",
        manual="Download NWPU-RESISC45.rar from https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs and extract it there.",
    ),
    "diabetic_retinopathy": VtabSource(
        "diabetic_retinopathy_detection/btgraham-300", _OWN, _LABEL, marker="trainLabels.csv",
        manual="Download the data of https://www.kaggle.com/c/diabetic-retinopathy-detection/data, join its parts "
        "(cat train.zip.* > train.zip, five of them; test.zip likewise), and unpack train/, test/, sample/, "
        "sampleSubmission.csv and trainLabels.csv there.",
    ),
    "clevr_count": VtabSource("clevr", _CLEVR, object_count),
    "clevr_dist": VtabSource("clevr", _CLEVR, object_distance),
    "dmlab": VtabSource("dmlab", _OWN, _LABEL),
    "kitti": VtabSource("kitti", _OWN, vehicle_distance),
    "dsprites_loc": VtabSource("dsprites", _EIGHT_ONE_ONE, field("label_x_position", merged=2), pixel_scale=255),
    "dsprites_ori": VtabSource("dsprites", _EIGHT_ONE_ONE, field("label_orientation", merged=2.5), pixel_scale=255),
    "smallnorb_azi": VtabSource("smallnorb", _HALF_OF_TEST, field("label_azimuth")),
    "smallnorb_ele": VtabSource("smallnorb", _HALF_OF_TEST, field("label_elevation")),
})  # fmt: skip
"""The 19 tasks, made from 16 data sets."""
