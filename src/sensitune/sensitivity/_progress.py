"""Say how far the pass is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Progress: TypeAlias = bool | Callable[[int, int | None], None]


@contextmanager
def progress_reporter(progress: Progress, total: int | None) -> Iterator[Callable[[int], None]]:
    """What to call with the number of batches done.

    Args:
        progress: False for silence, True for a rich progress bar, or a function of (done, total).
        total: Number of batches, if it is known.

    Yields:
        A function of the number of batches done.
    """
    if callable(progress):
        yield lambda done: progress(done, total)
    elif progress:
        from rich.progress import Progress as Bar  # heavy, and only wanted at a terminal

        with Bar() as bar:
            task = bar.add_task("Sensitivity", total=total)
            yield lambda done: bar.update(task, completed=done)
    else:
        yield lambda done: None
