"""Texts from JSON lines and tables, and the batches that are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sensitune.advice import TextData, is_text, load_text, text_batches
from sensitune.errors import DataError


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_json_lines_and_tables_hold_the_same_texts(tmp_path: Path) -> None:
    lines = written(tmp_path, "a.jsonl", '{"text": "one, two", "kind": "x"}\n\n{"text": "three", "kind": "y"}\n')
    table = written(tmp_path, "a.csv", 'text,kind\n"one, two",x\nthree,y\n')
    tabs = written(tmp_path, "a.tsv", "text\tkind\none, two\tx\nthree\ty\n")
    expected = TextData(("one, two", "three"), (0, 1), ("x", "y"))
    assert load_text(lines, label="kind") == load_text(table, label="kind") == load_text(tabs, label="kind") == expected
    assert load_text(lines) == TextData(("one, two", "three"))


def test_what_holds_texts_is_told_by_its_name() -> None:
    assert [is_text(name) for name in ("a.jsonl", "a.CSV", "hf:me/texts", "photos", "a.tsv")] == [True] * 3 + [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"txt": "one"}\n', r"has no column `text` in row 1; it has .*txt.* --text and --label"),
        ("a.jsonl", "{", "a.jsonl cannot be read"),
        ("a.jsonl", "[1]\n", r"line 1 must be an object. Got \[1\]"),
        ("a.jsonl", '{"text": 3}\n', "`text` of row 1 must be text. Got 3"),
        ("a.jsonl", "[" * 100_000, "cannot be read"),
        ("a.csv", b"text\n\xff\xfe\n", "cannot be read"),
        ("a.csv", "text\n\n", "holds no text in the column `text`"),
        ("missing/a.csv", None, "cannot be read: .*No such file"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    tmp_path: Path, name: str, content: str | bytes | None, sentence: str
) -> None:
    path = tmp_path / name if content is None else written(tmp_path, name, content)
    with pytest.raises(DataError, match=sentence):
        load_text(path)


def test_one_class_is_no_task(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,kind\na,x\nb,x\n")
    with pytest.raises(DataError, match=r"`kind` of .*a.csv must hold at least two classes. Got 'x' alone."):
        load_text(path, label="kind")


class Tokenizer:
    """A number per letter."""

    def __call__(self, texts: list[str], **options: Any) -> Any:
        width = min(options["max_length"], max(map(len, texts)))
        ids = torch.tensor([[ord(letter) for letter in text[:width].ljust(width, "\0")] for text in texts])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def test_batches_hold_every_text_once_with_its_labels() -> None:
    data = TextData(("a", "bb", "ccc"), (0, 1, 0), ("x", "y"))
    batches = list(text_batches(data, Tokenizer(), batch_size=2, max_length=2))
    found = [
        (chr(ids[0]), int(label))
        for batch in batches
        for ids, label in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    assert sorted(found) == [("a", 0), ("b", 1), ("c", 0)]
    assert [len(batch["input_ids"]) for batch in batches] == [2, 1]


def test_without_classes_the_ids_are_the_labels_and_padding_does_not_count() -> None:
    (batch,) = text_batches(TextData(("a", "bb")), Tokenizer(), batch_size=2, max_length=9)
    assert torch.equal(batch["labels"], batch["input_ids"].masked_fill(batch["input_ids"] == 0, -100))
    assert (batch["labels"] == -100).sum() == 1
