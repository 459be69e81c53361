"""Properties of the seeded, stratified selection."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sensitune.data._build import LabelledFile
from sensitune.data._splits import apportion, shuffled, take_stratified

counts = st.lists(st.integers(0, 50), min_size=1, max_size=8)


def files_of(sizes: list[int]) -> list[LabelledFile]:
    return [LabelledFile(Path(f"{label}/{i}"), label) for label, size in enumerate(sizes) for i in range(size)]


@given(counts, st.floats(0, 1))
def test_the_places_add_up_and_no_group_is_overfilled(sizes: list[int], share: float) -> None:
    size = round(share * sum(sizes))
    places = apportion(sizes, size)
    assert sum(places) == size
    assert all(0 <= place <= count for place, count in zip(places, sizes, strict=True))


@given(counts, st.floats(0, 1))
def test_every_group_gets_its_share_to_within_one(sizes: list[int], share: float) -> None:
    size = round(share * sum(sizes))
    for place, count in zip(apportion(sizes, size), sizes, strict=True):
        assert abs(place - size * count / max(sum(sizes), 1)) < 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.floats(0, 1))
def test_a_minimum_is_kept(sizes: list[int], share: float) -> None:
    size = max(round(share * sum(sizes)), len(sizes))
    places = apportion(sizes, size, at_least=1)
    assert sum(places) == size
    assert min(places) >= 1


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(0, 1), st.integers(0, 3))
def test_drawn_and_rest_are_the_whole_and_every_class_stays(sizes: list[int], share: float, seed: int) -> None:
    files = files_of(sizes)
    taken, rest = take_stratified(files, round(share * len(files)), seed=seed, leave=1)
    assert set(taken + rest) == set(files)
    assert len(taken + rest) == len(files)
    assert set(Counter(file.label for file in rest)) == set(range(len(sizes)))


@given(st.integers(0, 5))
def test_the_seed_decides_and_global_state_does_not(seed: int) -> None:
    files = files_of([10, 20, 5])
    assert take_stratified(files, 12, seed=seed) == take_stratified(files, 12, seed=seed)
    assert shuffled(files, seed=seed) == shuffled(files, seed=seed)
    assert set(shuffled(files, seed=seed)) == set(files)


def test_the_draw_is_the_same_on_every_machine() -> None:
    taken, _ = take_stratified(files_of([5, 5]), 4, seed=0)
    assert [str(file.path) for file in taken] == ["0/3", "0/4", "1/0", "1/2"]
