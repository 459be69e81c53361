"""One run of a sweep, as something that can be handed to another process, and to another one if that is lost."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from sensitune._files import atomic_write
from sensitune.errors import NonFiniteError, SensituneError
from sensitune.runs import Run, RunConfig, RunFolder, check_finished
from sensitune.training import read_result

_DIVERGED = "diverged.txt"


@dataclass(frozen=True)
class Job:
    """A run that stands for itself: plain data, the same result wherever and however often it is started.

    Attributes:
        name: Its name in the sweep, ``TASK/METHOD/SETTINGS/SEED``.
        folder: Its run folder, on a disk that every worker sees.
        config: Its settings.
        scores: Folder where the runs of a sweep share their scores; two workers may both estimate them, to no harm.
        test: Whether the trained adapter is tested.
    """

    name: str
    folder: Path
    config: RunConfig
    scores: Path
    test: bool

    @property
    def finished(self) -> bool:
        """Whether everything it is to write is there.

        Raises:
            RunFolderError: If it was written by a run with other settings.
        """
        trained = read_result(self.folder) is not None and (not self.test or self.test_accuracy is not None)
        if not trained and self.diverged is None:
            return False
        check_finished(RunFolder(self.folder, self.config))
        return True

    @property
    def test_accuracy(self) -> float | None:
        """What the last epoch's weights reach on the test split; None until they were tested.

        ``sensitune evaluate`` on another split or with other weights leaves its own numbers in the same file.
        """
        evaluation = RunFolder(self.folder, self.config).evaluation
        if not evaluation.exists():
            return None
        found = json.loads(evaluation.read_text(encoding="utf-8"))
        return float(found["accuracy"]) if (found["split"], found["weights"]) == ("test", "last") else None

    @property
    def diverged(self) -> str | None:
        """Why the training ended before its time, if its loss was not finite: a result, not to be tried again."""
        note = self.folder / _DIVERGED
        return note.read_text(encoding="utf-8") if note.exists() else None


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job.

    Attributes:
        name: The job's name.
        error: Why it failed, in one sentence; None if it is finished.
        seconds: How long it took.
    """

    name: str
    error: str | None
    seconds: float


def run_job(job: Job) -> JobOutcome:
    """Do what is left of a job: nothing if it is finished, the rest of it if it was interrupted.

    Args:
        job: The job.

    Returns:
        Its outcome; a mistake in its settings or data is an outcome, not an exception.
    """
    started = time.perf_counter()
    try:
        _run(job)
    except (SensituneError, OSError) as error:
        return JobOutcome(job.name, str(error), time.perf_counter() - started)
    return JobOutcome(job.name, None, time.perf_counter() - started)


def _run(job: Job) -> None:
    if job.finished:
        return
    run = Run.open(job.folder, job.config, scores=job.scores)
    try:
        run.train()
    except NonFiniteError as error:
        with atomic_write(job.folder / _DIVERGED) as temporary:
            temporary.write_text(str(error), encoding="utf-8")
        raise
    if job.test:
        run.evaluate(split="test")
