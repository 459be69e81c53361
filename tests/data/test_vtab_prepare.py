"""VTAB-1k made from its sources: which rows, which labels, whole files only; and archives unpacked safely."""

from __future__ import annotations

import hashlib
import json
import stat
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sensitune.data import VTAB_TASKS, prepare_vtab1k, unpack_vtab1k
from sensitune.data import _vtab_prepare as preparing
from sensitune.data._vtab import VtabTask
from sensitune.data._vtab_sources import VTAB_SOURCES, field, object_count, object_distance, vehicle_distance
from sensitune.errors import ArgumentError, DataError, MissingPackageError
from sensitune_command import main

Rows = Sequence[Mapping[str, object]]

# Numbers of rows of the sources' splits, and where the tasks' parts begin in them: from the published construction.
SOURCE_SIZES = {
    "cifar": ({"train": 50_000, "test": 10_000}, 45_000, 0),
    "caltech101": ({"train": 3_059, "test": 6_084}, 2_753, 0),
    "dtd": ({"train": 1_880, "validation": 1_880, "test": 1_880}, 0, 0),
    "oxford_flowers102": ({"train": 1_020, "validation": 1_020, "test": 6_149}, 0, 0),
    "svhn": ({"train": 73_257, "test": 26_032}, 65_931, 0),
    "sun397": ({"train": 76_128, "validation": 10_875, "test": 21_750}, 0, 0),
    "oxford_iiit_pet": ({"train": 3_680, "test": 3_669}, 2_944, 0),
    "patch_camelyon": ({"train": 262_144, "validation": 32_768, "test": 32_768}, 0, 0),
    "eurosat": ({"train": 27_000}, 16_200, 21_600),
    "resisc45": ({"train": 31_500}, 18_900, 25_200),
    "diabetic_retinopathy": ({"train": 35_126, "validation": 10_906, "test": 42_670}, 0, 0),
    "clevr_count": ({"train": 70_000, "validation": 15_000}, 63_000, 0),
    "clevr_dist": ({"train": 70_000, "validation": 15_000}, 63_000, 0),
    "dmlab": ({"train": 65_550, "validation": 22_628, "test": 22_735}, 0, 0),
    "kitti": ({"train": 6_347, "validation": 423, "test": 711}, 0, 0),
    "dsprites_loc": ({"train": 737_280}, 589_824, 663_552),
    "dsprites_ori": ({"train": 737_280}, 589_824, 663_552),
    "smallnorb_azi": ({"train": 24_300, "test": 24_300}, 0, 12_150),
    "smallnorb_ele": ({"train": 24_300, "test": 24_300}, 0, 12_150),
}


@pytest.mark.parametrize("task", VTAB_TASKS)
def test_every_part_begins_and_ends_where_the_benchmark_has_it(task: str) -> None:
    sizes, validation_start, test_start = SOURCE_SIZES[task]
    train, validation, test = (part.rows(sizes[part.split]) for part in VTAB_SOURCES[task].parts)
    assert train.start == 0
    assert len(train) >= 800
    assert (validation.start, test.start) == (validation_start, test_start)
    assert len(validation) >= 200
    assert len(test) == VTAB_TASKS[task].test_sizes[0]


def test_nineteen_tasks_come_from_sixteen_data_sets() -> None:
    assert list(VTAB_SOURCES) == list(VTAB_TASKS)
    assert len({source.builder for source in VTAB_SOURCES.values()}) == 16


def clevr_row(depths: Sequence[float]) -> dict[str, object]:
    coordinates = np.array([[9.0, 9.0, depth] for depth in depths], np.float32)
    return {"objects": {"size": np.zeros(len(depths)), "pixel_coords": coordinates}}


def kitti_row(*vehicles: tuple[int, float]) -> dict[str, object]:
    return {
        "objects": {
            "type": np.array([kind for kind, _ in vehicles], np.int64),
            "location": np.array([[1.0, 2.0, depth] for _, depth in vehicles], np.float32).reshape(-1, 3),
        }
    }


def test_clevr_counts_objects_from_three() -> None:
    assert [object_count(clevr_row([10.0] * count)) for count in range(3, 11)] == list(range(8))


@pytest.mark.parametrize(
    ("depths", "label"),
    [([7.9, 12], 0), ([8.0, 9], 0), ([8.1], 1), ([8.75], 2), ([9.25], 3), ([9.5], 3), ([9.75], 4), ([10.5, 11], 5)],
)
def test_clevr_distance_is_the_interval_of_the_closest_object(depths: list[float], label: int) -> None:
    assert object_distance(clevr_row(depths)) == label


@pytest.mark.parametrize(
    ("vehicles", "label"),
    [
        ([(0, 5.0), (2, 30.0)], 0),
        ([(1, 8.0)], 0),
        ([(0, 8.5), (3, 1.0)], 1),
        ([(2, 25.0), (5, 2.0)], 2),
        ([(3, 4.0)], 3),
        ([], 3),
    ],
)
def test_kitti_distance_is_that_of_the_closest_vehicle(vehicles: list[tuple[int, float]], label: int) -> None:
    assert vehicle_distance(kitti_row(*vehicles)) == label


def test_dsprites_merges_neighbours_into_sixteen_classes() -> None:
    location, orientation = field("x", merged=2), field("x", merged=2.5)
    assert [location({"x": x}) for x in range(32)] == [x // 2 for x in range(32)]
    assert [orientation({"x": x}) for x in range(40)] == [int(2 * x / 5) for x in range(40)]
    assert VTAB_SOURCES["dsprites_ori"].label({"label_orientation": np.int64(39)}) == 15


class FakeBuilder:
    """A source of three splits; a row's label is its position, its pixels too."""

    version = "1.2.3"
    reads: list[int]

    def __init__(self, sizes: Mapping[str, int], classes: int = 4, channels: int = 3) -> None:
        self.sizes, self.classes, self.channels, self.reads = sizes, classes, channels, []

    def as_data_source(self, split: str) -> Rows:
        count, builder = self.sizes[split], self

        class Source(Sequence):
            def __len__(self) -> int:
                return count

            def __getitem__(self, index: int) -> Mapping[str, object]:
                builder.reads.append(index)
                pixels = np.full((3, 5, builder.channels), index % 200, np.uint8)
                return {"image": pixels, "label": np.int64(index % builder.classes)}

        return Source()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBuilder:
    """A benchmark of 8 and 2 training images whose eurosat has 4 classes and comes from 50 rows."""
    builder = FakeBuilder({"train": 50})
    sizes = {"train800": 8, "val200": 2, "train800val200": 10}
    monkeypatch.setattr(preparing, "VTAB_SIZES", sizes)
    monkeypatch.setattr("sensitune.data._vtab.VTAB_SIZES", sizes)
    tiny = VTAB_TASKS | {"eurosat": VtabTask("eurosat", "specialized", 4, (10,))}
    monkeypatch.setattr("sensitune.data._vtab.VTAB_TASKS", tiny)
    monkeypatch.setattr(preparing, "_prepared_builder", lambda *_: builder)
    return builder


def test_a_task_is_written_as_png_with_lists_and_checksums(fake: FakeBuilder, tmp_path: Path) -> None:
    folder = prepare_vtab1k("eurosat", tmp_path)
    assert (folder / "train800.txt").read_text().splitlines()[:2] == [
        "images/train800/000000.png 0",
        "images/train800/000001.png 1",
    ]
    assert (folder / "val200.txt").read_text() == "images/val200/000000.png 2\nimages/val200/000001.png 3\n"
    assert (folder / "train800val200.txt").read_text() == (folder / "train800.txt").read_text() + (
        folder / "val200.txt"
    ).read_text()
    assert np.asarray(Image.open(folder / "images" / "test" / "000003.png")).tolist() == [[[43] * 3] * 5] * 3
    listed = dict(reversed(line.split("  ")) for line in (folder / "checksums.sha256").read_text().splitlines())
    files = {path for path in folder.rglob("*") if path.suffix in {".png", ".txt"}}
    assert set(listed) == {path.relative_to(folder).as_posix() for path in files}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in listed.items())
    made = json.loads((folder / "prepared.json").read_text())
    assert made["made_from"]["tfds"] == "eurosat/rgb:1.2.3"
    assert made["sizes"] == {"train800": 8, "val200": 2, "test": 10, "train800val200": 10}


def test_a_finished_task_is_left_alone(fake: FakeBuilder, tmp_path: Path) -> None:
    prepare_vtab1k("eurosat", tmp_path)
    fake.reads.clear()
    prepare_vtab1k("eurosat", tmp_path)
    assert fake.reads == []


def test_a_half_finished_preparation_goes_on_and_writes_no_image_twice(fake: FakeBuilder, tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if name == "eurosat test" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_vtab1k("eurosat", tmp_path, progress=stop)
    folder = tmp_path / "eurosat"
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert len(written) == 13
    assert not list(folder.glob("*.txt"))
    prepare_vtab1k("eurosat", tmp_path)
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())
    assert len(list(folder.rglob("*.png"))) == 20
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def test_what_a_killed_preparation_has_left_is_removed_and_in_no_checksum(fake: FakeBuilder, tmp_path: Path) -> None:
    whole = prepare_vtab1k("eurosat", tmp_path / "whole")
    images = tmp_path / "killed" / "eurosat" / "images" / "test"
    images.mkdir(parents=True)
    (images / ".000095.png.0123abcd.png").write_bytes(b"half")
    killed = prepare_vtab1k("eurosat", tmp_path / "killed")
    assert (killed / "checksums.sha256").read_text() == (whole / "checksums.sha256").read_text()
    assert not list(killed.rglob(".*"))


def test_progress_is_told_image_by_image(fake: FakeBuilder, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    prepare_vtab1k("eurosat", tmp_path, progress=lambda *step: told.append(step))
    assert told[0] == ("eurosat train800", 1, 8)
    assert told[-1] == ("eurosat test", 10, 10)


def test_another_version_of_a_source_is_refused_before_anything_is_written(fake: FakeBuilder, tmp_path: Path) -> None:
    fake.sizes = {"train": 60}
    with pytest.raises(DataError, match=r"The source of eurosat gives 12 images for test, but the benchmark has 10\."):
        prepare_vtab1k("eurosat", tmp_path)
    assert not (tmp_path / "eurosat").exists()
    fake.sizes, fake.classes = {"train": 50}, 5
    with pytest.raises(DataError, match=r"Row 4 of eurosat/rgb has the label 4 for eurosat. Class ids go from 0 to 3"):
        prepare_vtab1k("eurosat", tmp_path)


def test_grey_and_binary_pixels_become_images() -> None:
    grey = preparing.to_image(np.array([[[0], [1]]], np.uint8), 255)
    assert grey.mode == "L"
    assert np.asarray(grey.convert("RGB")).tolist() == [[[0] * 3, [255] * 3]]


def test_without_tensorflow_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        MissingPackageError, match=r"by tensorflow-datasets. Install the extra: pip install 'sensitune\[vtab\]'"
    ):
        prepare_vtab1k("cifar", tmp_path)


def fake_tfds(monkeypatch: pytest.MonkeyPatch, prepare: Callable[[], None], data_dir: Path) -> None:
    builder = SimpleNamespace(data_dir=str(data_dir), is_prepared=lambda: False, download_and_prepare=prepare)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", SimpleNamespace(builder=lambda *_, **__: builder))


@pytest.mark.parametrize(
    ("task", "below", "instruction"),
    [
        ("resisc45", "resisc45/3.0.0", "Download NWPU-RESISC45.rar from"),
        ("diabetic_retinopathy", "diabetic_retinopathy_detection/btgraham-300/3.0.0", "trainLabels.csv there"),
    ],
)
def test_manual_downloads_are_explained(
    task: str, below: str, instruction: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> None:
        raise AssertionError("never reached without the files")

    fake_tfds(monkeypatch, fail, tmp_path / below)
    with pytest.raises(DataError, match=rf"{task} needs files that .* in {tmp_path}/downloads/manual. .*{instruction}"):
        prepare_vtab1k(task, tmp_path / "out")


def test_a_failed_download_says_why_and_sun397_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> None:
        raise OSError("no route")

    fake_tfds(monkeypatch, fail, tmp_path / "sun397" / "tfds" / "4.0.0")
    with pytest.raises(DataError, match=r"sun397/tfds could not be downloaded .*OSError: no route.* opencv-python-hea"):
        prepare_vtab1k("sun397", tmp_path)


def test_a_source_of_arrays_asks_for_tensorflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> None:
        raise ImportError("No module named 'tensorflow'")

    fake_tfds(monkeypatch, fail, tmp_path / "cifar100" / "3.0.2")
    with pytest.raises(DataError, match=r"only TensorFlow encodes: pip install tensorflow\."):
        prepare_vtab1k("cifar", tmp_path)


def write_archive(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


LAYOUT = {
    "vtab-1k/": b"",
    "vtab-1k/cifar/test.txt": b"images/test/000000.jpg 3\n",
    "vtab-1k/cifar/images/test/000000.jpg": b"pixels",
    "vtab-1k/dtd/test.txt": b"",
    "vtab-1k/README": b"hello",
    "__MACOSX/vtab-1k/cifar/._test.txt": b"junk",
}


@pytest.mark.parametrize("prefix", ["vtab-1k/", ""])
def test_an_archive_is_unpacked_with_or_without_a_folder_around_it(prefix: str, tmp_path: Path) -> None:
    files = {name.replace("vtab-1k/", prefix, 1): content for name, content in LAYOUT.items() if name != "vtab-1k/"}
    out = tmp_path / "out"
    assert unpack_vtab1k(write_archive(tmp_path / "a.zip", files), out) == ["cifar", "dtd"]
    assert (out / "cifar" / "images" / "test" / "000000.jpg").read_bytes() == b"pixels"
    assert {path.name for path in out.iterdir()} == {"cifar", "dtd"}
    assert "test.txt" in (out / "cifar" / "checksums.sha256").read_text()


def test_unpacking_goes_on_and_repairs_half_written_files(tmp_path: Path) -> None:
    archive, out = write_archive(tmp_path / "a.zip", LAYOUT), tmp_path / "out"
    unpack_vtab1k(archive, out)
    whole, half = out / "cifar" / "test.txt", out / "cifar" / "images" / "test" / "000000.jpg"
    before = whole.stat().st_mtime_ns
    half.write_bytes(b"pix")
    unpack_vtab1k(archive, out)
    assert whole.stat().st_mtime_ns == before
    assert half.read_bytes() == b"pixels"


@pytest.mark.parametrize(
    "name", ["/cifar/x.jpg", "../cifar/x.jpg", "cifar/../../x.jpg", "C:\\cifar\\x.jpg", "cifar\\..\\..\\x"]
)
def test_an_archive_with_paths_that_lead_out_is_refused_whole(name: str, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.zip", LAYOUT | {name: b"x"})
    with pytest.raises(DataError, match=r"a.zip holds '.*', which leads out of its folder. Nothing was unpacked"):
        unpack_vtab1k(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("cifar/test.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"'cifar/test.txt', which leads out of its folder"):
        unpack_vtab1k(tmp_path / "a.zip", tmp_path / "out")


def test_what_is_no_archive_of_the_benchmark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_text("<html>")
    with pytest.raises(DataError, match=r"page.zip is truncated, damaged or not a zip archive"):
        unpack_vtab1k(tmp_path / "page.zip", tmp_path)
    whole = write_archive(tmp_path / "a.zip", LAYOUT).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.zip is truncated, damaged or not a zip archive"):
        unpack_vtab1k(tmp_path / "cut.zip", tmp_path)
    with pytest.raises(DataError, match=r"other.zip holds no task folder of VTAB-1k"):
        unpack_vtab1k(write_archive(tmp_path / "other.zip", {"x": b""}), tmp_path)
    with pytest.raises(DataError, match=r"nowhere.zip does not exist"):
        unpack_vtab1k(tmp_path / "nowhere.zip", tmp_path)


def test_without_the_hub_the_way_out_is_an_archive() -> None:
    with pytest.raises(
        DataError, match=r"vtab-1k.zip could not be fetched from \S+ on the hub .* `--from zip --archive"
    ):
        preparing.fetch_vtab1k()


def test_the_command_prepares_checks_and_goes_on_after_a_task_that_fails(
    fake: FakeBuilder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["data", "vtab1k", "--tasks", "kitti", "eurosat", "--output", str(tmp_path)]
    assert main(chosen) == 2
    shown = capsys.readouterr()
    assert "eurosat: complete" in shown.out
    assert "error: kitti: The prepared kitti cannot be read (KeyError: 'validation')" in shown.err
    assert "1 of 2 tasks are not complete: kitti. See above." in shown.err
    assert main(["data", "vtab1k", "--tasks", "eurosat", "--output", str(tmp_path)]) == 0


def test_the_command_unpacks_an_archive_and_checks_its_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_archive(tmp_path / "a.zip", LAYOUT)
    command = ["data", "vtab1k", "--from", "zip", "--archive", str(archive), "--output", str(tmp_path / "out")]
    assert main([*command, "--tasks", "cifar"]) == 2
    assert "cifar/train800.txt does not exist" in capsys.readouterr().err


def test_the_commands_options_are_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "vtab1k", "--from", "zip"]) == 2
    assert "`--archive` is the file of `--from zip`. Give both or neither." in capsys.readouterr().err
    assert main(["data", "vtab1k", "--tasks", "mnist"]) == 2
    assert "VTAB-1k has no task 'mnist'" in capsys.readouterr().err
    with pytest.raises(ArgumentError, match="has no task 'mnist'"):
        prepare_vtab1k("mnist", tmp_path)
