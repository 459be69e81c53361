"""Damage one file, read it under limits of time and memory, and say how it ended.

    python tests/fuzz/attempts.py [INPUTS PER KIND, FIRST SEED, KINDS]

prints a table of all kinds, and an example of each bad end to standard error.
"""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]

from kinds import KINDS, Kind

from sensitune.errors import SensituneError

SECONDS = 10
MEMORY = 2**30
ENDS = ("same", "sentence", "other content", "silently different", "traceback", "too long")
BAD = ENDS[3:]


@dataclass(frozen=True)
class Outcome:
    """How reading a damaged file ended: one of `ENDS`, and what was said."""

    end: str
    said: str = ""


class Sound:
    """A sound folder of a kind, made once, and what is read from it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.kind: Kind = KINDS[name]
        self.folder = folder / "sound"
        self.damaged = folder / "damaged"
        self.folder.mkdir(parents=True)
        self.kind.make(self.folder)
        self.expected = plain(self._read_copy())

    def _copy(self) -> None:
        shutil.rmtree(self.damaged, ignore_errors=True)
        shutil.copytree(self.folder, self.damaged)

    def _read_copy(self) -> Any:
        # Always from the same folder, since paths are part of what is read.
        self._copy()
        with _quiet():
            return self.kind.read(self.damaged)

    def attempt(self, seed: int) -> Outcome:
        """Damage a copy as the seed says, and read it."""
        rng = random.Random(f"{self.name} {seed}")
        self._copy()
        pattern = rng.choice(sorted(self.kind.changes))
        path = rng.choice(sorted(self.damaged.glob(pattern)))
        before = path.read_bytes()
        with _quiet():
            after = rng.choice(self.kind.changes[pattern])(rng, before)
        path.write_bytes(after)
        outcome = self._read(path)
        # An atomic writer's temporary file, or what a pickle did.
        assert not Path("unpickled").exists(), f"{path.name} of seed {seed} was executed"
        return outcome

    def _read(self, path: Path) -> Outcome:
        try:
            with _quiet(), _limits():
                found = plain(self.kind.read(self.damaged))
        except SensituneError as error:
            return _judge(str(error), path)
        except _TooLongError:
            return Outcome("too long")
        except BaseException as error:  # whatever escapes is what is looked for
            return Outcome("traceback", f"{type(error).__name__}: {str(error)[:200]}")
        if found == self.expected:
            return Outcome("same")
        return Outcome("silently different" if self.kind.sealed else "other content")


def _judge(sentence: str, path: Path) -> Outcome:
    """Whether an error says which file it is, on one line, at a length that can be read."""
    named = path.name in sentence or path.parent.name in sentence
    if not named or not sentence.isprintable() or len(sentence) > 1200:
        return Outcome("traceback", f"no sentence: {sentence[:300]!r}")
    return Outcome("sentence", sentence)


def plain(value: Any) -> Any:
    """Values that can be compared, NaN with NaN too."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, [plain(getattr(value, each.name)) for each in fields(value)]
    if isinstance(value, Mapping):
        return {repr(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else repr(value)


class _TooLongError(BaseException):
    """No `Exception`, so that nothing in between makes a sentence of it."""


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """At most `SECONDS`, and `MEMORY` more than the process has by now."""

    def stop(*_: Any) -> None:
        raise _TooLongError

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    """Print the table."""
    number, first = (
        (int(each) for each in [*sys.argv[1:], "100", "0"][:2]) if len(sys.argv) < 3 else map(int, sys.argv[1:3])
    )
    chosen = sys.argv[3:] or list(KINDS)
    lines = [["kind", "inputs", *ENDS]]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in chosen:
            sound = Sound(name, Path(folder) / name)
            counts: Counter[str] = Counter()
            shown: set[str] = set()
            for seed in range(first, first + max(1, round(number * sound.kind.share))):
                outcome = sound.attempt(seed)
                counts[outcome.end] += 1
                example = outcome.end + outcome.said[:25]
                if outcome.end in BAD and example not in shown:
                    shown.add(example)
                    sys.stderr.write(f"{name}, seed {seed}: {outcome.end}: {outcome.said}\n")
            lines.append([name, str(sum(counts.values())), *(str(counts[end]) for end in ENDS)])
            shutil.rmtree(Path(folder) / name)
    sys.stdout.write("\n".join(" | ".join(line) for line in lines) + "\n")


if __name__ == "__main__":
    main()
