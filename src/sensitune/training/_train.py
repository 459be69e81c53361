"""One training run, from a tuned model and its data to the adapter folders and their numbers."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from sensitune._memory import naming_stage
from sensitune._processes import Processes
from sensitune.data import ImageData, ImageTransform
from sensitune.errors import ArgumentError, NonFiniteError
from sensitune.training._answers import Answers
from sensitune.training._checkpoints import TrainingSetting, last_checkpoint, open_checkpoints
from sensitune.training._device import resolve_device, resolve_dtype
from sensitune.training._evaluate import Evaluation, measure
from sensitune.training._finite import check_finite_loss, check_finite_weights
from sensitune.training._manifest import AdapterManifest
from sensitune.training._reading import Reading, check_model, open_reading, prepare_splits
from sensitune.training._recipe import Recipe
from sensitune.training._result import (
    EpochMetrics,
    TrainingFolder,
    TrainingProgress,
    TrainingResult,
    chosen_epoch,
    read_metrics,
    write_metrics,
    write_result,
)
from sensitune.training._run_card import write_card
from sensitune.training._sharding import check_launcher
from sensitune.training._shares import check_enough_images
from sensitune.training._unused import used_parameters_alone
from sensitune.training._weights import load_weights, save_weights

_STEP_NEEDS_LESS = (
    "Lower `batch_size`, the rank of the allocation or the size of the images, or turn on the model's activation "
    "checkpointing."
)


def train(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    output_dir: str | os.PathLike[str],
    *,
    transform: ImageTransform,
    manifest: AdapterManifest | None = None,
    resume: bool = True,
    device: str | torch.device = "auto",
    num_workers: int = 0,
    sharded: bool = False,
    cache_bytes: int = 2 * 2**30,
    seed: int = 0,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> TrainingResult:
    """Train what requires a gradient, keep its weights, and say how good they are.

    The validation split is evaluated after every epoch, or, where ``recipe.validate`` says so, after the last one
    alone, which is then the chosen one; the test split twice and only at the end: with the last epoch's weights and
    with those of the epoch that was best on the validation split. Writes to `output_dir`: ``adapter/`` (last epoch)
    and ``adapter_chosen/`` (chosen epoch), each with a model card, ``metrics.jsonl`` and ``training.json``; with a test
    split ``answers.safetensors``, what the last epoch's weights said of each image; and, until it is finished,
    ``checkpoints/``.

    Where the head alone trains, the backbone works as in evaluation: drop-path and dropout in it would only blur what
    the head reads. Its features are then computed once, and the epochs go through them, unless the images change from
    epoch to epoch (augmentation, mixup) or the features exceed `cache_bytes`; ``training.json`` says which it was.

    Python's, NumPy's and torch's random states are seeded.

    Where torch.distributed is initialised, its processes train together and every one calls this: they share each
    batch of `recipe.batch_size` images, so that losses and gradients are those of one process up to what is random
    within a batch (dropout, drop-path, augmentation, and mixup, which pairs images of one share). The first writes;
    all return the same. A training goes on with any number of processes.

    Args:
        model: A PEFT model (or any module with trainable parameters) that maps images [batch, 3, height, width] to
            logits [batch, classes], alone or as ``.logits``. It ends up with the last epoch's weights.
        data: Splits ``train`` and, optionally, ``validation`` and ``test``.
        recipe: The optimisation.
        output_dir: Where the files go.
        transform: How images become tensors; augmentation, if any, on the training split only.
        manifest: Saved in the adapter folders, so that `load_tuned` can use them on their own.
        resume: Go on from the last checkpoint in `output_dir`, with the same result as a run in one piece; False
            removes the checkpoints and starts again.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        num_workers: Processes that read images; 0 reads them in this one.
        sharded: Whether processes that train together share the weights out (torch's FSDP2), each holding its part of
            every tensor, frozen or not; False has each hold them all. One process has no use for it. The model stays
            shared out; what is saved is whole.
        cache_bytes: Resized images, or features, are kept in memory up to this size for each split; 0 decodes the
            images every epoch.
        seed: Seed of the order of the images, of dropout and of all else that is random while it trains; from 0 to
            2³² − 1.
        progress: Called after every step.

    Returns:
        The run's numbers.

    Raises:
        MemoryLimitError: If there is not enough memory; the message says what to lower.
        NonFiniteError: If a loss or the trained values become infinite or not a number; the message says when. The
            checkpoints are removed then, so that `output_dir` can be used again with another recipe.
        ArgumentError: If the launcher asks for DeepSpeed or accelerate's FSDP, nothing requires a gradient, the model's
            outputs are not the data's classes, its adapter is not called ``default``, the device is one of several by
            number, or the seed is out of range.
        RunFolderError: If `output_dir` holds checkpoints of another recipe or seed.
    """
    check_launcher()
    place = resolve_device(device)
    if place.index:
        raise ArgumentError(
            f"`device` must not be numbered for training. Got {place}. Set CUDA_VISIBLE_DEVICES instead."
        )
    if not 0 <= seed < 2**32:
        raise ArgumentError(f"`seed` must be a whole number from 0 to {2**32 - 1}. Got {seed}.")
    images = prepare_splits(data, transform, cache_bytes)
    check_model(model, images["train"], data.num_classes)
    check_enough_images(len(images["train"]))
    folder, processes = TrainingFolder(Path(output_dir)), Processes.found()
    setting = TrainingSetting(recipe, seed, len(images["train"]))
    resumed_after = processes.first(lambda: open_checkpoints(folder, setting, resume=resume))
    metrics = list(processes.first(lambda: read_metrics(folder.metrics)[:resumed_after])) if resumed_after else []
    reading = open_reading(model, images, recipe, device=place, num_workers=num_workers, cache_bytes=cache_bytes)
    sharded = sharded and processes.count > 1 and not reading.of_features
    run = _Run(model, recipe, reading, folder, place, num_workers, seed, manifest, sharded, data.num_classes)
    try:
        chosen = run.fit(metrics, progress)
        test_accuracy_last, test_accuracy_chosen = run.test(chosen)
    except NonFiniteError:
        # From its checkpoints it would only come here again; without them another recipe can be tried.
        processes.first(lambda: shutil.rmtree(folder.checkpoints))
        raise
    result = TrainingResult(
        metrics=tuple(metrics),
        last_epoch=metrics[-1].epoch,
        chosen_epoch=chosen,
        test_accuracy_last=test_accuracy_last,
        test_accuracy_chosen=test_accuracy_chosen,
        seconds=reading.seconds + sum(row.seconds for row in metrics),
        resumed_after=resumed_after,
        **run.facts(),
    )
    return processes.first(lambda: run.finish(result))


@dataclass(frozen=True)
class _Run:
    """What every stage of a training run shares."""

    model: nn.Module
    recipe: Recipe
    reading: Reading
    folder: TrainingFolder
    device: torch.device
    num_workers: int
    seed: int
    manifest: AdapterManifest | None
    sharded: bool
    num_classes: int

    def fit(self, metrics: list[EpochMetrics], progress: Callable[[TrainingProgress], None] | None) -> int | None:
        """Train what is left to train, add to the metrics, keep the last weights; return the chosen epoch."""
        if self.recipe.epochs == 0:
            return self._keep_start(metrics)
        # transformers' trainer takes seconds to import: only those who train wait for it.
        from sensitune.training._callbacks import EpochRecorder, ProgressReporter
        from sensitune.training._trainer import RecipeTrainer, restored_verbosity

        recorder = EpochRecorder(self.model, self.folder, metrics)
        with restored_verbosity():
            trainer = RecipeTrainer(
                self.model,
                recipe=self.recipe,
                reading=self.reading,
                checkpoints=self.folder.checkpoints,
                device=self.device,
                num_workers=self.num_workers,
                seed=self.seed,
                callbacks=[recorder, *([ProgressReporter(progress, metrics)] if progress else [])],
                sharded=self.sharded,
            )
            trainer.create_optimizer()  # of all that trains: any number of processes can then go on from another's
            with (
                naming_stage("a training step", _STEP_NEEDS_LESS),
                used_parameters_alone(self.reading.module, self.reading.splits["train"][0]["pixel_values"][None]),
            ):
                trainer.train(resume_from_checkpoint=Processes.found().first(lambda: last_checkpoint(self.folder)))
        check_finite_weights(self.model)
        save_weights(self.model, self.folder.adapter, manifest=self.manifest)
        return chosen_epoch(metrics)

    def _keep_start(self, metrics: list[EpochMetrics]) -> int | None:
        """What `fit` is where there is nothing to train."""
        started = time.perf_counter()
        found = {split: self._evaluate(split) for split in self.reading.splits if split != "test"}
        seconds, validation = time.perf_counter() - started, found.get("validation")
        row = EpochMetrics(0, found["train"].loss, 0.0, seconds)
        save_weights(self.model, self.folder.adapter, manifest=self.manifest)
        if validation is not None:
            row = replace(row, validation_accuracy=validation.accuracy, validation_loss=validation.loss)
            save_weights(self.model, self.folder.candidate(0))
        metrics.append(row)
        Processes.found().first(lambda: write_metrics(self.folder.metrics, metrics))
        return None if validation is None else 0

    def test(self, chosen_epoch: int | None) -> tuple[float | None, float | None]:
        """Test accuracy of the last and of the chosen weights; the chosen ones get a folder of their own."""
        last = self._test_accuracy(keep_answers=True)
        if chosen_epoch is None:
            return last, None
        load_weights(self.model, self.folder.candidate(chosen_epoch))
        save_weights(self.model, self.folder.chosen_adapter, manifest=self.manifest)
        chosen = self._test_accuracy()
        load_weights(self.model, self.folder.adapter)
        return last, chosen

    def _test_accuracy(self, *, keep_answers: bool = False) -> float | None:
        if "test" not in self.reading.splits:
            return None
        found = self._evaluate("test")
        if keep_answers:
            answers = Answers.of(found, num_classes=self.num_classes)
            Processes.found().first(lambda: answers.save(self.folder.answers))
        return found.accuracy

    def _evaluate(self, split: str) -> Evaluation:
        found = measure(
            self.reading.module,
            self.reading.splits[split],
            precision=self.recipe.precision,
            batch_size=self.recipe.batch_size,
            device=self.device,
            num_workers=0 if self.reading.of_features else self.num_workers,
        )
        check_finite_loss(split, found.loss, "after the last epoch")
        return found

    def finish(self, result: TrainingResult) -> TrainingResult:
        """Write the numbers, and the model cards, now that these are known; the checkpoints have done their duty."""
        self._describe(result)
        write_result(self.folder, result)
        shutil.rmtree(self.folder.checkpoints)
        return result

    def _describe(self, result: TrainingResult) -> None:
        if isinstance(self.model, PeftModel):
            write_card(self.folder.root, "last", recipe=self.recipe, result=result)
            if result.chosen_epoch is not None:
                write_card(self.folder.root, "chosen", recipe=self.recipe, result=result)

    def facts(self) -> dict[str, Any]:
        """What the result records of the run's setting."""
        return {
            "trained_params": sum(each.numel() for each in self.model.parameters() if each.requires_grad),
            "num_train_images": len(self.reading.splits["train"]),
            "frozen_features": self.reading.of_features,
            "num_processes": Processes.found().count,
            "seed": self.seed,
            "device": self.device.type,
            "precision": str(resolve_dtype(self.recipe.precision, self.device)).removeprefix("torch."),
        }
