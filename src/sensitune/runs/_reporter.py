"""How a run tells where it stands."""

from __future__ import annotations

from typing import Protocol

from sensitune.training import TrainingProgress


class Reporter(Protocol):
    """Receives a run's stages and steps; the command line draws them."""

    def stage(self, title: str) -> None:
        """A stage begins.

        Args:
            title: What it does, in a few words.
        """

    def step(self, done: int, total: int | None, note: str = "") -> None:
        """The stage goes on.

        Args:
            done: Steps done.
            total: Steps in all; None if unknown.
            note: What there is to say about it.
        """


class Silent:
    """Says nothing."""

    def stage(self, title: str) -> None:
        """Say nothing."""

    def step(self, done: int, total: int | None, note: str = "") -> None:
        """Say nothing."""


def report_training(reporter: Reporter, progress: TrainingProgress) -> None:
    """A training step in a reporter's words.

    Args:
        reporter: Who is told.
        progress: Where the training stands.
    """
    note = f"epoch {progress.epoch}/{progress.num_epochs}"
    if progress.train_loss is not None:
        note += f", loss {progress.train_loss:.3f}"
    if progress.validation_accuracy is not None:
        note += f", validation {progress.validation_accuracy:.1%}"
    reporter.step(progress.step, progress.num_steps, note)
