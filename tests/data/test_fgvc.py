"""FGVC: five data sets with JSON splits, ids over their union, and Cars however its archive was unpacked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from datasets import Image as ImageFeature
from PIL import Image

from sensitune.data import FGVC_DATASETS, DataSettings, ImageTransform, load_data
from sensitune.data._fgvc import load_fgvc
from sensitune.errors import ArgumentError, DataError

WriteFgvc = Callable[..., Path]


@pytest.fixture
def write_fgvc(tmp_path: Path) -> WriteFgvc:
    """A data set in the right layout: every class has one image in one split, and each split lacks most classes."""

    def write(name: str, *, folder: str | None = None, prefix: str = "", first_id: int = 1) -> Path:
        spec = FGVC_DATASETS[name]
        home = tmp_path / (folder or spec.folder)
        splits: dict[str, dict[str, int]] = {"train": {}, "val": {}, "test": {}}
        for index in range(spec.num_classes):
            split = ("train", "val", "test")[index % 3]
            path = f"{prefix or f'{index:03d}.kind/'}{index:05d}.jpg"
            splits[split][path] = 2 * index + first_id
            (home / spec.images / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (3, 3)).save(home / spec.images / path)
        for split, content in splits.items():
            (home / f"{split}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def rewrite(root: Path, name: str, split: str, content: Mapping[str, object] | str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (root / FGVC_DATASETS[name].folder / f"{split}.json").write_text(text)


@pytest.mark.parametrize("name", FGVC_DATASETS)
def test_every_data_set_loads_from_its_own_layout(name: str, write_fgvc: WriteFgvc) -> None:
    data = load_fgvc(name, root=write_fgvc(name))
    spec = FGVC_DATASETS[name]
    assert data.num_classes == spec.num_classes
    assert sum(data.split_sizes.values()) == spec.num_classes
    assert json.loads(json.dumps(data.info)) == data.info


def test_the_table_is_the_fields() -> None:
    assert {each.name: (each.num_classes, each.images) for each in FGVC_DATASETS.values()} == {
        "cub": (200, "images"),
        "nabirds": (555, "images"),
        "flowers": (102, ""),
        "dogs": (120, "Images"),
        "cars": (196, ""),
    }


def test_ids_are_numbered_over_the_union_of_the_splits(write_fgvc: WriteFgvc) -> None:
    data = load_data(DataSettings("fgvc/flowers", root=str(write_fgvc("flowers", first_id=5))))
    assert data.class_names[:3] == ("5", "7", "9")
    assert data.dataset["train"]["label"][:3] == [0, 3, 6]
    assert data.dataset["validation"]["label"][:3] == [1, 4, 7]
    assert data.dataset["test"]["label"][:3] == [2, 5, 8]


def test_ids_written_as_text_are_sorted_by_value(write_fgvc: WriteFgvc) -> None:
    root = write_fgvc("dogs")
    for split in ("train", "val", "test"):
        path = root / "Stanford-dogs" / f"{split}.json"
        path.write_text(json.dumps({key: str(value) for key, value in json.loads(path.read_text()).items()}))
    assert load_fgvc("dogs", root=root).class_names[:6] == ("1", "3", "5", "7", "9", "11")


def test_the_final_run_trains_on_both(write_fgvc: WriteFgvc) -> None:
    root = write_fgvc("cub")
    apart, together = load_fgvc("cub", root=root), load_fgvc("cub", root=root, train_on_validation=True)
    assert list(together.dataset) == ["train", "test"]
    assert together.split_sizes["train"] == apart.split_sizes["train"] + apart.split_sizes["validation"]


def test_a_folder_may_have_the_short_name_and_be_given_itself(write_fgvc: WriteFgvc) -> None:
    assert load_data(write_fgvc("dogs") / "Stanford-dogs").info["benchmark"] == "fgvc/dogs"
    assert load_fgvc("cub", root=write_fgvc("cub", folder="cub")).num_classes == 200


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("folder", ["cars_train", "car_ims"])
def test_cars_load_from_both_archives_and_as_mirrors_nest_them(
    folder: str, nested: bool, write_fgvc: WriteFgvc
) -> None:
    root = write_fgvc("cars", prefix=f"{folder}/")
    home = root / "Stanford-cars"
    if nested:
        (home / folder).rename(home / "once")
        (home / folder).mkdir()
        (home / "once").rename(home / folder / folder)
    first = load_fgvc("cars", root=root).dataset["train"].cast_column("image", ImageFeature(decode=False))[0]["image"]
    inner = f"{folder}/{folder}" if nested else folder
    assert first["path"] == str(home / inner / "00000.jpg")


def test_the_recipe_crops_and_flips_and_evaluates_the_centre() -> None:
    plain = ImageTransform(224, mean=(0, 0, 0), std=(1, 1, 1), resize=256, augment=True)
    pixels = torch.arange(256).repeat(3, 256, 1).to(torch.uint8)
    columns = {tuple((plain.finish(pixels)[0, 0] * 255).round().int().tolist()[::223]) for _ in range(60)}
    assert len(columns) > 10
    assert any(first > last for first, last in columns)
    centre = plain.for_evaluation().finish(pixels)
    assert (centre[0, 0] * 255).round().int().tolist()[::223] == [16, 239]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "train.json cannot be read: Expecting property name"),
        ('{"a.jpg": 1, "a.jpg": 2}', "train.json cannot be read: it has the key 'a.jpg' twice"),
        ('{"a.jpg": ' + "9" * 99 + "}", "train.json cannot be read: it holds a whole number of 99 digits"),
        ("[1]", "must map image paths to class ids"),
        ("{}", "must map image paths to class ids"),
        ({"a.jpg": "bee"}, "gives 'a.jpg' the class id 'bee'. It must be a whole number"),
        ({"a.jpg": 1.5}, "gives 'a.jpg' the class id 1.5"),
        ({"a.jpg": True}, "gives 'a.jpg' the class id True"),
        ({"a.jpg": -1}, "gives 'a.jpg' the class id -1"),
    ],
)
def test_a_damaged_split_is_named(content: Mapping[str, object] | str, message: str, write_fgvc: WriteFgvc) -> None:
    root = write_fgvc("flowers")
    rewrite(root, "flowers", "train", content)
    with pytest.raises(DataError, match=message):
        load_fgvc("flowers", root=root)


def test_a_path_that_leaves_the_folder_or_a_missing_image_is_refused(write_fgvc: WriteFgvc) -> None:
    root = write_fgvc("flowers")
    whole = json.loads((root / "OxfordFlower" / "train.json").read_text())
    rewrite(root, "flowers", "train", whole | {"../../x.jpg": 1})
    with pytest.raises(DataError, match=r"train.json names '../../x.jpg', which leaves the folder"):
        load_fgvc("flowers", root=root)
    rewrite(root, "flowers", "train", whole | {"x.jpg": 1})
    with pytest.raises(DataError, match=r"train.json names the image \S+/OxfordFlower/x.jpg, which does not exist"):
        load_fgvc("flowers", root=root)


def test_another_number_of_classes_says_what_was_expected(write_fgvc: WriteFgvc) -> None:
    root = write_fgvc("dogs")
    rewrite(root, "dogs", "test", {"002.kind/00002.jpg": 1})
    with pytest.raises(DataError, match=r"dogs has 120 classes, but the splits in \S+ hold 80\."):
        load_fgvc("dogs", root=root)


def test_a_missing_data_set_or_split_is_named(write_fgvc: WriteFgvc, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nabirds is neither in data/fgvc/nabirds nor .* Unpack its archive there"):
        load_data("fgvc/nabirds")
    with pytest.raises(ArgumentError, match="FGVC has no data set 'planes'. It has: cub, nabirds"):
        load_data("fgvc/planes")
    root = write_fgvc("cub")
    (root / "CUB_200_2011" / "val.json").unlink()
    with pytest.raises(DataError, match=r"val\.json cannot be read: No such file or directory"):
        load_fgvc("cub", root=root)
