"""Whatever happens to a file: the same is read, or one sentence says which file it is; nothing hangs or takes a GiB."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attempts import BAD, Sound
from kinds import KINDS

_INPUTS = 14


@pytest.fixture(scope="module")
def make_sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Sound]:
    return lambda name: Sound(name, tmp_path_factory.mktemp("fuzz"))


def _bad_ends(sound: Sound, seeds: range) -> list[str]:
    found = ((seed, sound.attempt(seed)) for seed in seeds)
    return [f"seed {seed}: {outcome.end}: {outcome.said}" for seed, outcome in found if outcome.end in BAD]


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_as_it_was_or_refused_by_name(name: str, make_sound: Callable[[str], Sound]) -> None:
    sound = make_sound(name)
    assert _bad_ends(sound, range(max(2, round(_INPUTS * sound.kind.share)))) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_thousands_of_damaged_files_are(name: str, make_sound: Callable[[str], Sound]) -> None:
    sound = make_sound(name)
    assert _bad_ends(sound, range(1_000, 1_000 + round(300 * sound.kind.share))) == []
