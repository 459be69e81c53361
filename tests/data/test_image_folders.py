"""From a folder to splits: layouts, the automatic split, and everything that can be wrong with a folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest
from datasets import ClassLabel
from datasets import Image as ImageFeature
from PIL import Image

from sensitune.data import (
    DataSettings,
    ImageData,
    ImageTransform,
    PreparedImages,
    load_data,
    load_image_folder,
)
from sensitune.errors import ArgumentError, DataError

Write = Callable[..., list[Path]]


def paths_of(data: ImageData, split: str) -> list[str]:
    undecoded = data.dataset[split].cast_column("image", ImageFeature(decode=False))
    return [row["image"]["path"] for row in undecoded]


def test_a_folder_of_classes_is_split_with_every_class_keeping_its_share(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 40)
    write_images("dog", 20)
    data = load_image_folder(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.split_sizes == {"train": 36, "validation": 12, "test": 12}
    for split, expected in {"train": (24, 12), "validation": (8, 4), "test": (8, 4)}.items():
        counts = Counter(data.dataset[split]["label"])
        assert (counts[0], counts[1]) == expected


def test_the_splits_share_no_image_and_lose_none(write_images: Write, tmp_path: Path) -> None:
    written = write_images("cat", 13) + write_images("dog", 9)
    data = load_image_folder(tmp_path)
    found = [path for split in data.dataset for path in paths_of(data, split)]
    assert sorted(found) == sorted(map(str, written))


def test_labels_name_the_folder_of_the_image(write_images: Write, tmp_path: Path) -> None:
    write_images("zebra", 10)
    write_images("ant", 10)
    data = load_image_folder(tmp_path)
    for path, label in zip(paths_of(data, "train"), data.dataset["train"]["label"], strict=True):
        assert Path(path).parent.name == data.class_names[label]


def test_the_seed_decides_the_split(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 20)
    write_images("dog", 20)
    first, again, other = (paths_of(load_image_folder(tmp_path, seed=seed), "train") for seed in (1, 1, 2))
    assert first == again
    assert sorted(first) != sorted(other)


def test_the_split_does_not_depend_on_where_the_folder_lies(write_images: Write, tmp_path: Path) -> None:
    for place in ("a/here", "b/there"):
        write_images(f"{place}/cat", 20)
        write_images(f"{place}/dog", 20)

    def names(place: str) -> list[str]:
        return [Path(path).name for path in paths_of(load_image_folder(tmp_path / place), "train")]

    assert names("a/here") == names("b/there")


def test_the_first_training_images_hold_every_class(write_images: Write, tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        write_images(name, 30)
    data = load_image_folder(tmp_path)
    assert set(data.dataset["train"]["label"][:10]) == {0, 1}
    assert list(data.dataset["validation"]["label"]) == [0] * 30 + [1] * 30


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_a_folder_with_splits_is_taken_as_it_is(validation: str, write_images: Write, tmp_path: Path) -> None:
    for split, count in (("train", 5), (validation, 3), ("test", 2)):
        write_images(f"{split}/cat", count)
        write_images(f"{split}/dog", count)
    data = load_image_folder(tmp_path)
    assert list(data.dataset) == ["train", "validation", "test"]
    assert data.split_sizes == {"train": 10, "validation": 6, "test": 4}
    assert data.info["split"] == "as in the folder"


def test_only_validation_is_taken_out_of_train_and_never_a_test_split(write_images: Write, tmp_path: Path) -> None:
    write_images("train/cat", 10)
    write_images("train/dog", 10)
    data = load_image_folder(tmp_path, validation_fraction=0.2)
    assert data.split_sizes == {"train": 16, "validation": 4}
    assert data.info["split"] == "as in the folder, no test split; validation is a stratified 0.2 of train"


def test_a_test_class_may_be_absent_from_validation(write_images: Write, tmp_path: Path) -> None:
    for name in ("train/ant", "train/cat", "val/cat", "test/ant"):
        write_images(name, 2)
    data = load_image_folder(tmp_path)
    assert list(data.dataset["validation"]["label"]) == [1, 1]


def test_fractions_of_zero_make_no_split(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 4)
    write_images("dog", 4)
    assert load_image_folder(tmp_path, validation_fraction=0, test_fraction=0).split_sizes == {"train": 8}


def test_training_images_can_be_limited_and_keep_every_class(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 50)
    write_images("dog", 3)
    data = load_data(DataSettings(str(tmp_path), max_train=5))
    assert len(data.dataset["train"]) == 5
    assert set(data.dataset["train"]["label"]) == {0, 1}
    assert data.info["split_sizes"]["train"] == 5


def test_hidden_files_are_ignored_and_others_are_counted(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 5)
    write_images("dog", 5)
    for name in ("notes.txt", "cat/list.csv", "cat/._000.png", ".DS_Store", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    data = load_image_folder(tmp_path)
    assert data.info["ignored_files"] == 2
    assert sum(data.split_sizes.values()) == 10


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".tif"])
def test_every_usual_file_type_is_read(suffix: str, write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 3, suffix=suffix)
    write_images("dog", 3, suffix=suffix)
    images = PreparedImages(load_image_folder(tmp_path).dataset["train"], ImageTransform(12))
    assert images[0]["pixel_values"].std() > 0.5


def test_linked_classes_are_read_and_loops_of_links_end(write_images: Write, tmp_path: Path) -> None:
    write_images("data/cat", 5)
    write_images("elsewhere/dog", 5)
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "cat" / "self").symlink_to("self")
    (tmp_path / "data" / "cat" / "notes.txt").touch()
    data = load_image_folder(tmp_path / "data")
    assert (sum(data.split_sizes.values()), data.info["ignored_files"]) == (10, 1)


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Train", "Val", "TEST"), ("train", "dev", "test")])
def test_splits_go_by_several_names(names: tuple[str, ...], write_images: Write, tmp_path: Path) -> None:
    for count, split in enumerate(names, start=2):
        write_images(f"{split}/cat", count)
        write_images(f"{split}/dog", count)
    assert load_image_folder(tmp_path).split_sizes == {"train": 4, "validation": 6, "test": 8}


def test_without_train_beside_it_valid_is_a_class(write_images: Write, tmp_path: Path) -> None:
    write_images("valid", 5)
    write_images("invalid", 5)
    assert load_image_folder(tmp_path).class_names == ("invalid", "valid")


def test_names_that_look_the_same_are_one_class(write_images: Write, tmp_path: Path) -> None:
    for folder in ("train/cat", "val/cat", "train/" + normalize("NFC", "é"), "val/" + normalize("NFD", "é")):
        write_images(folder, 5)
    data = load_image_folder(tmp_path)
    assert data.class_names == ("cat", normalize("NFC", "é"))
    assert data.split_sizes == {"train": 10, "validation": 10}


def test_the_data_set_refers_to_files_and_names_its_classes(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 5)
    write_images("dog", 5)
    train = load_image_folder(tmp_path).dataset["train"]
    assert train.features["label"] == ClassLabel(names=["cat", "dog"])
    assert train.cast_column("image", ImageFeature(decode=False))[0]["image"]["bytes"] is None
    assert train.cache_files == []


def test_where_the_data_comes_from_is_recorded(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 10)
    write_images("dog", 10)
    info = load_image_folder(tmp_path, seed=3).info
    assert json.loads(json.dumps(info)) == info
    assert info["source"] == str(tmp_path.resolve())
    assert info["seed"] == 3
    assert info["split"] == "stratified; validation is 0.2 and test 0.2 of the whole"
    assert info["split_sizes"] == {"train": 12, "validation": 4, "test": 4}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".gif"])
def test_a_truncated_image_is_named(suffix: str, write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 5, suffix=suffix, size=64)
    broken = write_images("dog", 5, suffix=suffix, size=64)[2]
    cut(broken)
    with pytest.raises(DataError, match=rf"dog/002{suffix} cannot be read \(.*\).*`skip_unreadable=True` \(--skip-unr"):
        load_image_folder(tmp_path)


def test_further_unreadable_images_are_counted(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 5)
    for path in write_images("dog", 5)[:3]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"dog/000.png cannot be read .*, nor can 2 more"):
        load_image_folder(tmp_path)


def test_unreadable_images_are_skipped_only_when_asked_for(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 10)
    cut(write_images("dog", 10)[4])
    data = load_data(DataSettings(str(tmp_path), skip_unreadable=True))
    assert sum(data.split_sizes.values()) == 19
    assert data.info["skipped_unreadable"] == ["dog/004.png"]


def test_a_class_whose_every_image_is_skipped_is_empty(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 3)
    for path in write_images("dog", 3):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Class 'dog' of the folder .* holds no images"):
        load_image_folder(tmp_path, skip_unreadable=True)


def test_pixels_without_a_fixed_range_are_refused(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 3)
    write_images("dog", 3)
    Image.new("F", (4, 4)).save(tmp_path / "dog" / "float.tif")
    with pytest.raises(DataError, match=r"float.tif cannot be read \(An image of 32-bit pixels"):
        load_image_folder(tmp_path)


def test_a_missing_folder_is_refused() -> None:
    with pytest.raises(DataError, match="The image folder nowhere does not exist"):
        load_data("nowhere")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"images.zip is a file, not a folder. Expected class_name"):
        load_image_folder(tmp_path / "images.zip")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images in class folders"):
        load_image_folder(tmp_path)


def test_images_outside_class_folders_do_not_count(write_images: Write, tmp_path: Path) -> None:
    write_images(".", 4)
    with pytest.raises(DataError, match=r"holds no images in class folders .* Expected class_name/\*.jpg, or train/"):
        load_image_folder(tmp_path)


def test_an_empty_class_folder_is_named(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 3)
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"Class 'dog' of the folder .* holds no images. Add some, or remove"):
        load_image_folder(tmp_path)


def test_an_empty_class_folder_of_a_split_is_named(write_images: Write, tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cat"):
        write_images(name, 2)
    (tmp_path / "test" / "dog").mkdir()
    with pytest.raises(DataError, match=r"Class 'dog' of the test split of .* holds no images"):
        load_image_folder(tmp_path)


def test_a_split_without_images_is_named(write_images: Write, tmp_path: Path) -> None:
    write_images("train/cat", 2)
    write_images("train/dog", 2)
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"The validation split of .* holds no images"):
        load_image_folder(tmp_path)


def test_a_test_class_that_train_lacks_is_named(write_images: Write, tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/cow"):
        write_images(name, 2)
    with pytest.raises(DataError, match=r"The test split of .* has a class that train lacks: 'cow'"):
        load_image_folder(tmp_path)


def test_one_class_is_not_enough(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 4)
    with pytest.raises(DataError, match=r"must hold at least 2 classes to tell apart. It holds 1: 'cat'"):
        load_image_folder(tmp_path)


def test_splits_beside_other_folders_are_refused(write_images: Write, tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "cow"):
        write_images(name, 2)
    with pytest.raises(DataError, match=r"holds splits \(train\) and other folders \(cow\)"):
        load_image_folder(tmp_path)


def test_two_validation_folders_are_refused(write_images: Write, tmp_path: Path) -> None:
    for name in ("train/cat", "val/cat", "validation/cat"):
        write_images(name, 2)
    with pytest.raises(DataError, match=r"holds both val and validation. Keep one"):
        load_image_folder(tmp_path)


def test_splits_without_train_are_refused(write_images: Write, tmp_path: Path) -> None:
    write_images("val/cat", 2)
    write_images("test/cat", 2)
    with pytest.raises(DataError, match="holds test, val but no train folder"):
        load_image_folder(tmp_path)


def test_too_few_images_for_a_split_are_refused(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 1)
    write_images("dog", 1)
    with pytest.raises(DataError, match=r"2 images are too few for a test split of 0.2.* set `test_fraction` to 0"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.2, -1)])
def test_fractions_out_of_range_are_refused(validation: float, test: float, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=f"leave some for training. Got {validation} and {test}"):
        load_image_folder(tmp_path, validation_fraction=validation, test_fraction=test)


def test_fewer_training_images_than_classes_are_refused(write_images: Write, tmp_path: Path) -> None:
    write_images("cat", 10)
    write_images("dog", 10)
    with pytest.raises(ArgumentError, match=r"`max_train` must be at least 2, one image per class. Got 1"):
        load_image_folder(tmp_path, max_train=1)
