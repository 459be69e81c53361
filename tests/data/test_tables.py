"""Tables of paths and labels, what `datasets` reads, and fewer training images."""

from __future__ import annotations

import io
import json
import os
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from sensitune.data import DataSettings, ImageData, ImageTransform, PreparedImages, load_data
from sensitune.data._datasets import from_datasets, load_webdataset
from sensitune.data._subset import few_shot, join_validation
from sensitune.data._table import load_table
from sensitune.errors import ArgumentError, DataError

Write = Callable[..., list[Path]]


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((6, 6, 3), value, dtype=np.uint8))


def rows_of(paths: list[Path], tmp_path: Path, label: str) -> list[tuple[str, str]]:
    return [(str(path.relative_to(tmp_path)), label) for path in paths]


@pytest.fixture
def rows(write_images: Write, tmp_path: Path) -> list[tuple[str, str]]:
    return rows_of(write_images("a b", 10), tmp_path, "ant") + rows_of(write_images("c", 20), tmp_path, "bee, wild")


def write_csv(path: Path, rows: list[tuple[str, ...]], header: str = "path,label") -> Path:
    lines = [header, *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def by_file(data: ImageData) -> dict[str, str]:
    found = {}
    for split in data.dataset.values():
        for row in split.cast_column("image", ImageFeature(decode=False)):
            found[row["image"]["path"]] = data.class_names[row["label"]]
    return found


def test_a_csv_is_split_with_every_class_keeping_its_share(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    data = load_data(write_csv(tmp_path / "table.csv", rows))
    assert data.class_names == ("ant", "bee, wild")
    assert data.split_sizes == {"train": 18, "validation": 6, "test": 6}
    assert by_file(data) == {str(tmp_path / path): label for path, label in rows}
    assert Counter(data.dataset["test"]["label"]) == {0: 2, 1: 4}


def test_windows_line_ends_backslashes_and_other_columns_are_read(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    turned = [("x", path.replace("/", "\\"), label) for path, label in rows]
    path = write_csv(tmp_path / "table.csv", turned, header="note,path,label")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert by_file(load_table(path)) == {str(tmp_path / path): label for path, label in rows}


def test_a_table_with_splits_is_taken_as_it_is(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    splits = ["train", "train", "val", "test", "validation"] * 6
    table = write_csv(
        tmp_path / "t.csv", [(*row, split) for row, split in zip(rows, splits, strict=True)], "path,label,split"
    )
    data = load_table(table)
    assert data.split_sizes == {"train": 12, "validation": 12, "test": 6}
    assert data.info["split"] == "as in the table"


@pytest.mark.parametrize("form", ["records", "mapping", "lines"])
def test_json_in_three_forms_is_the_same_table(form: str, rows: list[tuple[str, str]], tmp_path: Path) -> None:
    records = [{"path": path, "label": label} for path, label in rows]
    content = {
        "records": json.dumps(records),
        "mapping": json.dumps(dict(rows)),
        "lines": "\n".join(map(json.dumps, records)) + "\n",
    }
    path = tmp_path / ("t.jsonl" if form == "lines" else "t.json")
    path.write_text(content[form])
    assert by_file(load_data(path)) == {str(tmp_path / name): label for name, label in rows}


def test_numbers_as_labels_are_ordered_by_value(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [(path, str(9 + index % 3)) for index, (path, _) in enumerate(rows)])
    assert load_table(table).class_names == ("9", "10", "11")


def test_paths_are_relative_to_the_root_that_is_given(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    table = write_csv(tmp_path / "lists" / "t.csv", rows)
    assert len(by_file(load_data(DataSettings(str(table), root=str(tmp_path))))) == 30


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("nowhere.png", "ant"), r"t.csv names the image \S+nowhere.png, which does not exist"),
        (("../x.png", "ant"), r"Row 31 of \S+t.csv names '../x.png', which leaves the folder"),
        (("/x.png", "ant"), "names '/x.png', which leaves the folder"),
        (("c/000.png", ""), r"Row 31 of \S+t.csv has no label. Its columns are: path, label"),
        (
            ("c/001.png", "ant", "bee"),
            r"Row 31 of \S+t.csv has more values than columns, such as 'bee'. An image has one",
        ),
        (
            ("c/000.png", "ant"),
            r"Rows 11 and 31 of \S+t.csv contradict each other: 'c/000.png' is 'bee, wild' and 'ant'",
        ),
        (("./c//000.png", "ant"), r"Rows 11 and 31 of \S+t.csv contradict each other"),
    ],
)
def test_a_bad_row_is_named(row: tuple[str, ...], message: str, rows: list[tuple[str, str]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_table(write_csv(tmp_path / "t.csv", [*rows, row]))


def test_one_image_in_two_splits_is_a_contradiction(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    named = [(*row, "train" if number % 2 else "TEST") for number, row in enumerate([*rows, rows[0]], start=1)]
    assert load_table(write_csv(tmp_path / "t.csv", named[:30], "path,label,split")).split_sizes["test"] == 15
    named[30] = (*rows[1], "train")
    with pytest.raises(
        DataError, match=r"Rows 2 and 31 .*'a b/001.png' is 'ant' of the test split and 'ant' of the tr"
    ):
        load_table(write_csv(tmp_path / "t.csv", named, "path,label,split"))


def test_a_row_that_is_there_twice_counts_once(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    data = load_table(write_csv(tmp_path / "t.csv", [*rows, *rows[:7]]))
    assert sum(data.split_sizes.values()) == 30


@pytest.mark.parametrize("label", [["ant", "bee"], {"ant": 1}])
def test_several_labels_of_an_image_are_refused(label: object, rows: list[tuple[str, str]], tmp_path: Path) -> None:
    records = [{"path": path, "label": name} for path, name in rows]
    (tmp_path / "t.json").write_text(json.dumps([*records[:-1], records[-1] | {"label": label}]))
    with pytest.raises(
        DataError, match=r"Row 30 of \S+t.json has several values as its label: .* An image has one label"
    ):
        load_table(tmp_path / "t.json")


def test_several_labels_of_an_image_of_a_data_set_are_refused() -> None:
    features = Features({"image": ImageFeature(), "label": datasets.Sequence(Value("string"))})
    table = Dataset.from_dict({"image": [picture(1)] * 4, "label": [["a", "b"], ["a"], ["b"], []]}, features=features)
    with pytest.raises(
        DataError, match=r"Each image of made must have one label, a number or a text. One has \['a', 'b'\]"
    ):
        from_datasets(table, source="made")


def test_a_table_and_the_disk_may_write_an_accent_differently(write_images: Write, tmp_path: Path) -> None:
    rows = [
        (unicodedata.normalize(form, str(path.relative_to(tmp_path))), unicodedata.normalize(form, label))
        for label in ("café", "thé")
        for path in write_images(unicodedata.normalize("NFD", label), 5)
        for form in ("NFC", "NFD")
    ]
    data = load_table(write_csv(tmp_path / "T.CSV", rows))
    assert data.class_names == ("café", "thé")
    assert sum(data.split_sizes.values()) == 10


def test_a_name_that_is_not_utf8_is_named_with_its_bytes(write_images: Write, tmp_path: Path) -> None:
    write_images("ant", 5)
    os.rename(os.fsencode(write_images("bee", 5)[0].parent), os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(DataError, match=r"^The name caf\\xe9 is not UTF-8, so no file could hold it. Rename it.$"):
        load_data(str(tmp_path))


def test_a_table_without_the_columns_or_rows_is_refused(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Row 1 of \S+ has no path. Its columns are: image, label"):
        load_table(write_csv(tmp_path / "t.csv", rows, header="image,label"))
    with pytest.raises(DataError, match="has no rows. It needs the columns path and label"):
        load_table(write_csv(tmp_path / "t.csv", []))
    (tmp_path / "t.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="Row 1 of .* must be an object with the keys path and label. Got 1"):
        load_table(tmp_path / "t.json")
    (tmp_path / "t.json").write_text("[{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"deep\.json cannot be read: it is nested too deeply\."):
        load_table(tmp_path / "deep.json")
    (tmp_path / "long.csv").write_text(f"path,label\n{'x' * 200_000},a\n")
    with pytest.raises(DataError, match=r"long\.csv is not CSV \(field larger than field limit"):
        load_table(tmp_path / "long.csv")
    with pytest.raises(DataError, match=r"t\.json cannot be read: Expecting property name"):
        load_table(tmp_path / "t.json")
    with pytest.raises(DataError, match=r"The table nowhere\.csv does not exist"):
        load_data("nowhere.csv")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ('{"path": "a.png", "path": "b.png", "label": 1}', "it has the key 'path' twice"),
        ('{"path": "a.png", "label": ' + "9" * 99 + "}", "it holds a whole number of 99 digits"),
        ("[" * 100_000, r"it is nested too deeply\."),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"path": "c/000.png", "label": "ant"}}\n\n{line}\n')
    with pytest.raises(DataError, match=rf"t\.jsonl cannot be read: line 3: {reason}"):
        load_table(tmp_path / "t.jsonl")


def test_wrong_splits_of_a_table_are_refused(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    def write(splits: list[str]) -> Path:
        named = [(*row, split) for row, split in zip(rows, splits, strict=True)]
        return write_csv(tmp_path / "t.csv", named, "path,label,split")

    with pytest.raises(DataError, match="Row 1 of .* has the split 'holdout'. It must be one of train, val"):
        load_table(write(["holdout"] * 30))
    with pytest.raises(DataError, match="gives some rows a split and others none"):
        load_table(write(["train"] * 29 + [""]))
    with pytest.raises(DataError, match="has the splits test but no train"):
        load_table(write(["test"] * 30))


def test_unreadable_images_of_a_table_are_named_or_skipped(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "c" / "003.png").write_bytes(b"no image")
    table = write_csv(tmp_path / "t.csv", rows)
    with pytest.raises(DataError, match=r"c/003.png cannot be read"):
        load_table(table)
    assert load_data(DataSettings(str(table), skip_unreadable=True)).info["skipped_unreadable"] == ["c/003.png"]


def coloured(count: int, *, labels: object, **more: list[object]) -> Dataset:
    """Pictures whose red channel is their position."""
    return Dataset.from_dict(
        {"picture": [picture(index) for index in range(count)], "label": [index % 3 for index in range(count)], **more},
        features=Features({"picture": ImageFeature(), "label": labels, **{name: Value("int64") for name in more}}),
    )


def reds(data: ImageData, split: str) -> dict[int, int]:
    images = PreparedImages(data.dataset[split], ImageTransform(6, mean=(0, 0, 0), std=(1, 1, 1)))
    items = [images[index] for index in range(len(images))]
    return {round(float(item["pixel_values"].max()) * 255): int(item["labels"]) for item in items}


def test_a_saved_data_set_of_one_split_is_divided(tmp_path: Path) -> None:
    coloured(30, labels=ClassLabel(names=["x", "y", "z"]), extra=list(range(30))).save_to_disk(tmp_path / "saved")
    data = load_data(tmp_path / "saved")
    assert data.class_names == ("x", "y", "z")
    assert data.split_sizes == {"train": 18, "validation": 6, "test": 6}
    found = {red: label for split in data.dataset for red, label in reds(data, split).items()}
    assert found == {index: index % 3 for index in range(30)}


def test_a_saved_data_set_with_splits_keeps_them(tmp_path: Path) -> None:
    sizes = {"train": 12, "valid": 6, "test": 3, "unlabelled": 3}
    names = ClassLabel(names=["x", "y", "z"])
    saved = DatasetDict({name: coloured(size, labels=names) for name, size in sizes.items()})
    saved.save_to_disk(tmp_path / "saved")
    data = load_data(tmp_path / "saved")
    assert data.split_sizes == {"train": 12, "validation": 6, "test": 3}
    assert data.info["split"] == "as published"
    assert data.info["ignored_splits"] == ["unlabelled"]


def test_a_test_split_is_never_taken_out_of_train_where_there_are_others() -> None:
    names = ClassLabel(names=["x", "y", "z"])
    data = from_datasets(
        DatasetDict({"train": coloured(12, labels=names), "val": coloured(6, labels=names)}), source="it"
    )
    assert data.split_sizes == {"train": 12, "validation": 6}


def test_labels_that_are_only_numbers_or_words_are_numbered_in_order() -> None:
    plain = coloured(12, labels=Value("int64"))
    words = plain.remove_columns("label").add_column("label", ["cow", "ant", "bee"] * 4)
    assert from_datasets(plain, source="it").class_names == ("0", "1", "2")
    data = from_datasets(words, source="it")
    assert data.class_names == ("ant", "bee", "cow")
    assert all(label == {0: 2, 1: 0, 2: 1}[red % 3] for red, label in reds(data, "train").items())


def test_what_cannot_be_told_apart_is_refused_with_the_columns(tmp_path: Path) -> None:
    unlabelled = coloured(6, labels=Value("int64")).rename_column("label", "answer")
    with pytest.raises(DataError, match=r"one column of images and one of labels .* It has: picture \(Image\), answer"):
        from_datasets(unlabelled, source="it")
    with pytest.raises(DataError, match="it has no split named 'train'. It has: test"):
        from_datasets(DatasetDict({"test": unlabelled}), source="it")
    with pytest.raises(DataError, match="The 6 images of it are too few for a test split of 0.01"):
        from_datasets(coloured(6, labels=Value("int64")), source="it", test_fraction=0.01)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"The saved data set \S+ cannot be read"):
        load_data(tmp_path)


def write_shard(path: Path, numbers: range) -> None:
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            stream = io.BytesIO()
            picture(number).save(stream, "PNG")
            for name, content in (("png", stream.getvalue()), ("cls", str(number % 3).encode())):
                info = tarfile.TarInfo(f"{number:04d}.{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def test_webdataset_shards_are_read_in_order_and_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "data-0.tar", range(15))
    write_shard(tmp_path / "shards" / "data-1.tar", range(15, 30))
    data = load_data(tmp_path / "shards" / "data-*.tar")
    assert data.split_sizes == {"train": 18, "validation": 6, "test": 6}
    found = {red: label for split in data.dataset for red, label in reds(data, split).items()}
    assert found == {index: index % 3 for index in range(30)}
    with pytest.raises(DataError, match=r"The shards .* cannot be read"):
        load_data(tmp_path / "nowhere-*.tar")


def test_shards_of_several_splits_are_recorded_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    shards = {name: str(tmp_path / f"{name}, small.tar") for name in ("train", "test")}
    for path, numbers in zip(shards.values(), (range(15), range(15, 30)), strict=True):
        write_shard(Path(path), numbers)
    data = load_webdataset(shards, validation_fraction=0)
    assert data.split_sizes == {"train": 15, "test": 15}
    assert data.info["source"] == list(shards.values())


def test_without_the_hub_the_way_out_is_a_saved_folder() -> None:
    with pytest.raises(DataError, match=r"'cifar100' could not be fetched from the hub .* `save_to_disk`"):
        load_data("hf:cifar100")


def test_a_hub_name_may_carry_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def load(name: str, config: str | None) -> Dataset:
        asked.append((name, config))
        return coloured(12, labels=ClassLabel(names=["x", "y", "z"]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_data("hf:owner/name").info["source"] == "hub: owner/name"
    assert load_data("hf:owner/name:small").info["source"] == "hub: owner/name (small)"
    assert asked == [("owner/name", None), ("owner/name", "small")]


def test_few_shots_keep_so_many_of_every_class_and_their_order(write_images: Write, tmp_path: Path) -> None:
    for name, count in (("ant", 30), ("bee", 12)):
        write_images(name, count)
    whole, few = load_data(tmp_path), load_data(DataSettings(str(tmp_path), shots=4))
    assert Counter(few.dataset["train"]["label"]) == {0: 4, 1: 4}
    assert few.split_sizes["test"] == whole.split_sizes["test"]
    assert few.info["shots"] == 4
    assert few.info["split_sizes"]["train"] == 8
    order = [path for path in by_file(whole) if path in {*by_file(few)}]
    assert order == list(by_file(few))


def test_the_seed_chooses_the_shots(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    whole = load_table(write_csv(tmp_path / "t.csv", rows))
    first, again, other = (list(by_file(few_shot(whole, 2, seed=seed)))[:4] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_impossible_numbers_of_training_images_are_refused(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", rows)
    with pytest.raises(DataError, match=r"Class 'ant' has 6 training images, fewer than `shots` = 7"):
        load_data(DataSettings(str(table), shots=7))
    with pytest.raises(ArgumentError, match=r"`shots` must be a whole number of at least 1 or None\. Got 0"):
        load_data(DataSettings(str(table), shots=0))
    with pytest.raises(ArgumentError, match=r"Give `max_train` or `shots`, not both\. Got 5 and 1"):
        load_data(DataSettings(str(table), shots=1, max_train=5))
    with pytest.raises(ArgumentError, match=r"`max_train` must be at least 2, one image per class. Got 1"):
        load_data(DataSettings(str(table), max_train=1))
    data = load_data(DataSettings(str(table), max_train=9))
    assert Counter(data.dataset["train"]["label"]) == {0: 3, 1: 6}


def test_so_many_test_images_are_chosen_once_and_none_where_they_are_not_to_be_seen(
    rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    table = str(write_csv(tmp_path / "t.csv", rows))
    whole, few = load_data(table), load_data(DataSettings(table, max_test=2))
    assert whole.split_sizes["test"] > 2
    assert few.split_sizes == whole.split_sizes | {"test": 2} == few.info["split_sizes"]
    assert list(few.dataset["test"]["label"]) == list(
        load_data(DataSettings(table, max_test=2)).dataset["test"]["label"]
    )
    assert load_data(DataSettings(table, max_test=1000)).split_sizes == whole.split_sizes
    unseen = load_data(DataSettings(table, max_test=2, test=False))
    assert set(unseen.dataset) == {"train", "validation"}


def test_options_that_do_not_go_with_the_source_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"`root` goes with vtab1k/TASK, .* not with 'demo'"):
        load_data(DataSettings("demo", root=str(tmp_path)))


def test_validation_images_join_the_training_images(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", rows)
    apart, joined = load_data(table), load_data(DataSettings(str(table), train_on_validation=True))
    sizes = apart.split_sizes
    assert joined.split_sizes == {"train": sizes["train"] + sizes["validation"], "test": sizes["test"]}
    expected = [*apart.dataset["train"]["label"], *apart.dataset["validation"]["label"]]
    assert list(joined.dataset["train"]["label"]) == expected
    assert joined.info["train_on_validation"] is True
    with pytest.raises(DataError, match=r"`train_on_validation` needs a validation split. The data has: train, test"):
        join_validation(joined)
