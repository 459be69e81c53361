"""The layer cards: what their script writes, and that the committed pages are what it writes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import sensitune

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in (ROOT / "docs/cards").glob("*.md") if path.stem != "index")


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/accuracy"))
    return importlib.import_module("cards")


def rows_of(text: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without those of its own heading."""
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*$", section, re.M)][2:]


def numbers(rows: list[list[str]], column: int) -> list[float]:
    return [float(row[column].rstrip("%×").replace(",", "")) for row in rows]


def test_a_card_adds_every_site_up_once(cards: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=4)
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(4, (4,))) for _ in range(4)]
    found = cards.measure(lambda: sensitune.estimate_sensitivity(model, batches, keep_halves=True))
    card = cards.Card("tiny", "A tiny model", "Tiny", "noise", "sensitune run --model x", lambda _: found.sensitivity)
    text = cards.write_card(card, found, tmp_path, where="here").read_text(encoding="utf-8")
    operations, depths = rows_of(text, "By operation"), rows_of(text, "By depth")
    assert [row[0] for row in depths] == ["blocks 0 to 0", "blocks 1 to 1", "blocks 2 to 2", "outside the blocks"]
    for rows in (operations, depths):
        assert sum(numbers(rows, 1)) == len(found.sensitivity.sites)
        assert sum(numbers(rows, 2)) == pytest.approx(100, abs=1)
        assert sum(numbers(rows, 3)) == pytest.approx(100, abs=1)
        assert sum(numbers(rows, 5)) == len(found.placed.structured)
        assert sum(numbers(rows, 6)) == found.placed.trainable_params - found.placed.always_trained_params
    # The most sensitive of an operation, counted the slow way.
    scores = torch.cat([found.sensitivity.score_of(site).flatten() for site in found.sensitivity.sites])
    least = scores.sort(descending=True).values[found.placed.tau - 1]
    of_v = [found.sensitivity.score_of(site) for site in found.sensitivity.sites if site.operation == "v"]
    expected = sum(int((each >= least).sum()) for each in of_v) / found.placed.tau
    (row,) = (row for row in operations if row[0] == "v")
    assert row[3] == f"{expected:.1%}"
    assert (tmp_path / "images/cards/tiny.png").is_file()


def test_the_thirds_of_a_model_hold_every_block_once(cards: Any) -> None:
    for blocks in (3, 4, 12, 30, 32):
        name = cards.depth_of(blocks)
        found = [
            name(sensitune.allocation.SiteRow("", block, "q", "matrix", "frozen", 0, 1)) for block in range(blocks)
        ]
        for third in dict.fromkeys(found):
            first, last = (int(number) for number in re.findall(r"\d+", third))
            assert [block for block, each in enumerate(found) if each == third] == list(range(first, last + 1))


def test_the_page_of_the_published_allocations_is_what_their_file_says(cards: Any, tmp_path: Path) -> None:
    page = cards.write_published(ROOT / "tests/golden/published", tmp_path)
    committed = ROOT / "docs/cards/vit_b16_published.md"
    assert page.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")


def test_the_index_lists_every_card(cards: Any, tmp_path: Path) -> None:
    text = cards.write_index(tmp_path).read_text(encoding="utf-8")
    assert text == (ROOT / "docs/cards/index.md").read_text(encoding="utf-8")
    assert {page.stem for page in PAGES} == {card.name for card in cards.CARDS} | {"vit_b16_published"}
    assert all(f"\n{page.stem}\n" in text for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_committed_card_is_in_itself_consistent_and_says_what_it_is_from(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    operations, depths = rows_of(text, "By operation"), rows_of(text, "By depth")
    for column in (1, len(operations[0]) - 2):
        assert sum(numbers(operations, column)) == sum(numbers(depths, column))
    assert f"`make cards CARDS={page.stem}`" in text
    assert "| data | " in text
    assert "measured" not in rows_of(text, "By depth")[0]
    if page.stem != "vit_b16_published":
        assert re.search(r"\| measured \| .*, \d threads?, \d{4}-\d\d-\d\d, \d+ s \|", text)
        assert sum(numbers(operations, 3)) == pytest.approx(100, abs=1)


def test_the_pictures_are_small() -> None:
    pictures = list((ROOT / "docs/images/cards").iterdir())
    assert {each.stem for each in pictures} == {page.stem for page in PAGES}
    assert sum(each.stat().st_size for each in pictures) < 200_000
