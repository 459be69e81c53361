"""What listens to the trainer: the record of the epochs and the progress of the steps."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sensitune._processes import Processes
from sensitune.training._result import EpochMetrics, TrainingFolder, TrainingProgress, chosen_epoch, write_metrics
from sensitune.training._weights import save_weights


class EpochRecorder(TrainerCallback):
    """Writes ``metrics.jsonl`` and keeps the weights of the epoch the validation split chooses.

    A better epoch's weights are written under their own name before the checkpoint, and the older ones removed after
    it: whenever the run is interrupted, the last checkpoint's choice is on the disk.
    """

    def __init__(self, model: nn.Module, folder: TrainingFolder, metrics: list[EpochMetrics]) -> None:
        self.model = model
        self.folder = folder
        self.metrics = metrics
        self._started = 0.0

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Record the epoch that has just been trained."""
        if logs is None or "loss" not in logs:
            return
        seconds = time.perf_counter() - self._started
        self.metrics.append(EpochMetrics(len(self.metrics) + 1, logs["loss"], logs["learning_rate"], seconds))
        Processes.found().first(self._write)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Record the validation, and the weights if it is the best so far."""
        if metrics is None:
            return
        self.metrics[-1] = replace(
            self.metrics[-1], validation_accuracy=metrics["eval_accuracy"], validation_loss=metrics["eval_loss"]
        )
        Processes.found().first(self._write)
        if chosen_epoch(self.metrics) == self.metrics[-1].epoch:
            save_weights(self.model, self.folder.candidate(self.metrics[-1].epoch))

    def _write(self) -> None:
        write_metrics(self.folder.metrics, self.metrics)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remove the weights that have been surpassed."""
        chosen = chosen_epoch(self.metrics)
        if chosen is None or not Processes.found().is_first:
            return
        for old in set(self.folder.checkpoints.glob("chosen-*")) - {self.folder.candidate(chosen)}:
            shutil.rmtree(old)


class ProgressReporter(TrainerCallback):
    """Tells a callable where the run stands after every step."""

    def __init__(self, report: Callable[[TrainingProgress], None], metrics: list[EpochMetrics]) -> None:
        self.report = report
        self.metrics = metrics

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report."""
        last = self.metrics[-1] if self.metrics else None
        self.report(
            TrainingProgress(
                step=state.global_step,
                num_steps=state.max_steps,
                epoch=len(self.metrics) + 1,
                num_epochs=int(args.num_train_epochs),
                train_loss=last.train_loss if last else None,
                validation_accuracy=last.validation_accuracy if last else None,
            )
        )
