"""One run of a sweep, as something that can be handed to another process, and to another one if that is lost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from sensitune._files import atomic_write
from sensitune.errors import NonFiniteError, RunFolderError, SensituneError, describe
from sensitune.runs import RecordedEvaluation, Run, RunConfig, RunFolder, check_finished
from sensitune.sweeps._key import RunKey
from sensitune.sweeps._sweep_config import SweepConfig
from sensitune.training import AdapterManifest, read_result

_DIVERGED = "diverged.txt"


@dataclass(frozen=True)
class Job:
    """A run that stands for itself: plain data, the same result wherever and however often it is started.

    Attributes:
        key: Which run it is.
        folder: Its run folder, on a disk that every worker sees.
        config: Its settings.
        scores: Folder where the runs of a sweep share their scores; two workers may both estimate them, to no harm.
        test: Whether the trained adapter is tested.
    """

    key: RunKey
    folder: Path
    config: RunConfig
    scores: Path
    test: bool

    @property
    def finished(self) -> bool:
        """Whether everything it is to write is there, and can be read.

        Raises:
            RunFolderError: If it was written by a run with other settings.
        """
        if self.damage is not None or not self._has_ended():
            return False
        check_finished(RunFolder(self.folder, self.config))
        return True

    def _has_ended(self) -> bool:
        if self.diverged is not None:
            return True
        return read_result(self.folder) is not None and (not self.test or self.tested is not None)

    @property
    def damage(self) -> str | None:
        """What is wrong with the files of a run that has got so far; None of one that is whole, or not finished."""
        try:
            if self._has_ended():
                recorded = RunFolder.load(self.folder)
                if self.diverged is None:
                    AdapterManifest.load(recorded.training.adapter)
        except (SensituneError, OSError) as error:
            return describe(error)
        return None

    @property
    def tested(self) -> RecordedEvaluation | None:
        """What the last epoch's weights reach on the test split; None until they were tested.

        ``sensitune evaluate`` on another split or with other weights leaves its own numbers in the same file.
        """
        found = RunFolder(self.folder, self.config).read_evaluation()
        return None if found is None or (found.split, found.weights) != ("test", "last") else found

    @property
    def diverged(self) -> str | None:
        """Why the training ended before its time, if its loss was not finite: a result, not to be tried again.

        With another recipe it is: that is the advice it gives.
        """
        note = self.folder / _DIVERGED
        if not note.exists():
            return None
        tried = RunFolder.load(self.folder).config.recipe
        return note.read_text(encoding="utf-8", errors="replace") if tried == self.config.recipe else None

    def note_divergence(self, error: NonFiniteError) -> None:
        """Write down why the training ended, so that it counts as a result.

        Args:
            error: What was raised.
        """
        with atomic_write(self.folder / _DIVERGED) as temporary:
            temporary.write_text(str(error), encoding="utf-8")


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job.

    Attributes:
        key: Which run it was.
        error: Why it failed, in one sentence; None if it is finished.
        seconds: How long it took.
    """

    key: RunKey
    error: str | None
    seconds: float


def make_job(config: SweepConfig, root: Path, key: RunKey, *, test: bool) -> Job:
    """A run of a sweep as a job.

    Args:
        config: The sweep.
        root: Its folder.
        key: The run.
        test: Whether it is tested.

    Returns:
        The job.
    """
    return Job(key, root / "runs" / key.folder, config.run_config(key), root / "scores", test)


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
        return JobOutcome(job.key, describe(error), time.perf_counter() - started)
    return JobOutcome(job.key, None, time.perf_counter() - started)


def _run(job: Job) -> None:
    if (damage := job.damage) is not None:
        raise RunFolderError(f"{damage} Or remove the folder {job.folder}, and it is run again.")
    if job.finished:
        return
    with RunFolder(job.folder, job.config).writing():
        run = Run.open(job.folder, job.config, scores=job.scores)
        (job.folder / _DIVERGED).unlink(missing_ok=True)  # it was another recipe's
        try:
            run.train()
        except NonFiniteError as error:
            job.note_divergence(error)
            raise
        if job.test:
            run.evaluate(split="test")
