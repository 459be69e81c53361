"""One run of a sweep, as something that can be handed to another process, and to another one if that is lost."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sensitune._files import atomic_write
from sensitune.errors import NonFiniteError, SensituneError
from sensitune.runs._config import RunConfig
from sensitune.runs._folder import RunFolder, check_finished
from sensitune.runs._methods import criterion_of, needs_sensitivity, scoring_method
from sensitune.runs._run import Run
from sensitune.sensitivity import Sensitivity
from sensitune.training import read_result

_DIVERGED = "diverged.txt"
# What the scores depend on. The head is drawn from the seed.
_OF_THE_SCORES = (
    *("model", "checkpoint", "pretrained", "image_size", "num_blocks", "normalize", "resize", "sensitivity"),
    *("data", "root", "max_train", "shots", "train_on_validation", "split_seed", "skip_unreadable", "seed"),
)


@dataclass(frozen=True)
class Job:
    """A run that stands for itself: plain data, the same result wherever and however often it is started.

    Attributes:
        name: Its name in the sweep, ``TASK/METHOD/SETTINGS/SEED``.
        folder: Its run folder, on a disk that every worker sees.
        config: Its settings.
        scores: Folder where the runs of a sweep share their scores.
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
    run = Run.open(job.folder, job.config)
    if not run.folder.allocation.exists():
        run.allocation(sensitivity=_shared_scores(job) if needs_sensitivity(job.config) else None)
    try:
        run.train()
    except NonFiniteError as error:
        with atomic_write(job.folder / _DIVERGED) as temporary:
            temporary.write_text(str(error), encoding="utf-8")
        raise
    if job.test:
        run.evaluate(split="test")


def _shared_scores(job: Job) -> Sensitivity:
    """The scores of every run on the same model, head and images; two workers may both estimate them, to no harm."""
    return Run.open(job.scores / scores_key(job.config), _scoring_config(job.config)).sensitivity()


def _scoring_config(config: RunConfig) -> RunConfig:
    """Only what the scores depend on, so that methods, budgets and recipes share them."""
    plain = RunConfig(config.model, config.data, scoring_method(config))
    kept = {name: getattr(config, name) for name in _OF_THE_SCORES}
    start: Literal["random", "gradient"] = "gradient" if config.needs_gradients else "random"
    kept["sensitivity"] = replace(config.sensitivity, criterion=criterion_of(config))
    return replace(plain, **kept, lora_start=start, device=config.device)


def scores_key(config: RunConfig) -> str:
    """A name for everything that a run's scores depend on.

    Args:
        config: The run's settings.

    Returns:
        16 hexadecimal digits.
    """
    settings = json.dumps(_scoring_config(replace(config, device="auto")).to_dict(), sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]
