"""VTAB-1k in the layout everyone shares: every task's sizes are checked, and every bad list gets one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Image as ImageFeature
from PIL import Image

from sensitune.data import (
    VTAB_TASKS,
    DataSettings,
    ImageTransform,
    PreparedImages,
    load_data,
    load_vtab1k,
)
from sensitune.errors import ArgumentError, DataError

SIZES = {"train800": 800, "val200": 200, "train800val200": 1000}
WriteTask = Callable[..., Path]


@pytest.fixture
def write_task(tmp_path: Path) -> WriteTask:
    """A task in the right layout, its lists as long as they must be; all lines of a split name one tiny image."""

    def write(task: str, *, test_size: int | None = None, num_classes: int | None = None) -> Path:
        spec = VTAB_TASKS[task]
        sizes = SIZES | {"test": test_size or spec.test_sizes[0]}
        classes = num_classes or spec.num_classes
        for split, size in sizes.items():
            image = tmp_path / task / "images" / split / "000000.png"
            image.parent.mkdir(parents=True)
            Image.new("RGB", (4, 4), (len(split), 0, 0)).save(image)
            lines = [f"images/{split}/000000.png {(7 * line) % classes}" for line in range(size)]
            (tmp_path / task / f"{split}.txt").write_text("\n".join(lines) + "\n")
        return tmp_path

    return write


def paths_of(data: object, split: str) -> list[str]:
    undecoded = data.dataset[split].cast_column("image", ImageFeature(decode=False))
    return [row["image"]["path"] for row in undecoded]


@pytest.mark.parametrize("task", VTAB_TASKS)
def test_every_task_loads_with_its_classes_and_test_size(task: str, write_task: WriteTask) -> None:
    data = load_vtab1k(task, root=write_task(task))
    spec = VTAB_TASKS[task]
    assert data.num_classes == spec.num_classes
    assert data.split_sizes == {"train": 800, "validation": 200, "test": spec.test_sizes[0]}
    assert data.info["group"] == spec.group
    assert json.loads(json.dumps(data.info)) == data.info


def test_the_table_is_the_benchmarks() -> None:
    groups = [task.group for task in VTAB_TASKS.values()]
    assert groups == ["natural"] * 7 + ["specialized"] * 4 + ["structured"] * 8
    assert sum(task.num_classes for task in VTAB_TASKS.values()) == 940
    assert sum(task.test_sizes[0] for task in VTAB_TASKS.values()) == 387_904


def test_the_final_run_trains_on_training_and_validation_images(write_task: WriteTask) -> None:
    root = write_task("kitti")
    data = load_data(DataSettings("vtab1k/kitti", root=str(root), train_on_validation=True))
    assert data.split_sizes == {"train": 1000, "test": 711}
    assert paths_of(data, "train")[0] == str(root / "kitti" / "images" / "train800val200" / "000000.png")
    chosen = load_data(DataSettings("vtab1k/kitti", root=str(root)))
    assert paths_of(chosen, "validation")[0] == str(root / "kitti" / "images" / "val200" / "000000.png")


def test_the_tasks_own_folder_is_as_good_as_its_name(write_task: WriteTask) -> None:
    folder = write_task("kitti") / "kitti"
    assert load_data(folder).info["benchmark"] == "vtab1k/kitti"
    assert load_data(DataSettings(str(folder), train_on_validation=True)).split_sizes == {"train": 1000, "test": 711}


def test_the_files_keep_the_lists_order_and_their_pixels(write_task: WriteTask) -> None:
    data = load_vtab1k("kitti", root=write_task("kitti"))
    assert data.dataset["train"]["label"][:5] == [0, 3, 2, 1, 0]
    pixels = PreparedImages(data.dataset["test"], ImageTransform(4, mean=(0, 0, 0), std=(1, 1, 1)))[0]["pixel_values"]
    assert pixels[:, 0, 0].tolist() == pytest.approx([4 / 255, 0, 0])


@pytest.mark.parametrize("test_size", [6084, 6085])
def test_caltech101_has_two_accepted_test_sizes(test_size: int, write_task: WriteTask) -> None:
    data = load_vtab1k("caltech101", root=write_task("caltech101", test_size=test_size))
    assert data.split_sizes["test"] == test_size


def test_a_wrong_number_of_test_images_says_what_was_expected(write_task: WriteTask) -> None:
    with pytest.raises(DataError, match=r"caltech101/test.txt must have 6,084 or 6,085 lines. It has 6,083\."):
        load_vtab1k("caltech101", root=write_task("caltech101", test_size=6083))


def test_a_wrong_number_of_training_images_says_what_was_expected(write_task: WriteTask) -> None:
    root = write_task("kitti")
    path = root / "kitti" / "train800.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match=r"kitti/train800.txt must have 800 lines. It has 799\."):
        load_vtab1k("kitti", root=root)


def test_a_data_set_with_fewer_classes_is_another_one(write_task: WriteTask) -> None:
    with pytest.raises(DataError, match=r"cifar has 100 classes, but the lists in \S+ hold 10 of them. Is it another"):
        load_vtab1k("cifar", root=write_task("cifar", num_classes=10))


def edit_first_line(root: Path, line: str) -> Path:
    path = root / "kitti" / "test.txt"
    path.write_text("\n".join([line, *path.read_text().splitlines()[1:]]))
    return root


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/test/nowhere.png 1", r"test.txt names the image \S+/nowhere.png, which does not exist. Is the data"),
        ("images/test/000000.png 4", r"Line 1 of \S+ has the label 4. Class ids go from 0 to 3"),
        ("images/test/000000.png -1", r"has the label -1. Class ids go from 0 to 3"),
        ("images/test/000000.png", r"must be an image path, a space and a class id. Got 'images/test/000000.png'"),
        ("images/test/000000.png one", "must be an image path, a space and a class id"),
        ("../kitti/images/test/000000.png 1", r"names '../kitti/images/test/000000.png', which leaves the folder"),
        ("images/../../x.png 1", "which leaves the folder .* Paths must stay inside it"),
        ("/etc/passwd 1", "names '/etc/passwd', which leaves the folder"),
        ("C:\\x.png 1", r"which leaves the folder"),
        ("C:x.png 1", r"which leaves the folder"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, write_task: WriteTask) -> None:
    with pytest.raises(DataError, match=message):
        load_vtab1k("kitti", root=edit_first_line(write_task("kitti"), line))


def test_several_missing_images_are_counted(write_task: WriteTask) -> None:
    root = write_task("kitti")
    (root / "kitti" / "images" / "test" / "000000.png").unlink()
    with pytest.raises(DataError, match=r"which does not exist, and 710 more that are missing"):
        load_vtab1k("kitti", root=root)


def test_windows_line_ends_and_spaces_in_paths_are_read(write_task: WriteTask) -> None:
    root = write_task("kitti")
    image = root / "kitti" / "images" / "test" / "with two  spaces.png"
    Image.new("RGB", (4, 4)).save(image)
    edit_first_line(root, "images/test/with two  spaces.png 2")
    path = root / "kitti" / "test.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    data = load_vtab1k("kitti", root=root)
    assert paths_of(data, "test")[0] == str(image)
    assert data.dataset["test"][0]["label"] == 2


def test_a_missing_task_folder_or_list_is_named(write_task: WriteTask, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"The folder \S+/dmlab does not exist. .* `sensitune data vtab1k`"):
        load_vtab1k("dmlab", root=tmp_path)
    with pytest.raises(DataError, match="The folder data/vtab-1k/dmlab does not exist"):
        load_data("vtab1k/dmlab")
    root = write_task("kitti")
    (root / "kitti" / "val200.txt").unlink()
    with pytest.raises(DataError, match=r"The list \S+/kitti/val200.txt does not exist"):
        load_vtab1k("kitti", root=root)


def test_a_list_that_is_no_text_is_refused(write_task: WriteTask) -> None:
    root = write_task("kitti")
    (root / "kitti" / "val200.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"val200.txt is not UTF-8 text .* Save it as UTF-8"):
        load_vtab1k("kitti", root=root)


def test_an_unknown_task_is_refused_with_those_there_are() -> None:
    with pytest.raises(ArgumentError, match="VTAB-1k has no task 'cifar100'. It has: cifar, caltech101, dtd"):
        load_data("vtab1k/cifar100")
