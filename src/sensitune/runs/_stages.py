"""One run, stage by stage; each stage reads what the earlier ones left in the run folder and adds its own."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from sensitune._files import atomic_write
from sensitune.allocation import Allocation, lora_directions
from sensitune.data import batches
from sensitune.errors import DataError, RunFolderError
from sensitune.runs._folder import RunFolder
from sensitune.runs._ingredients import build_backbone, build_data, build_manifest, build_transform
from sensitune.runs._methods import METHODS, criterion_of, needs_sensitivity, scoring_method
from sensitune.runs._reporter import Reporter, Silent, report_training
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.training import (
    Evaluation,
    TrainingResult,
    evaluate,
    fit_head,
    load_tuned,
    read_result,
    resolve_device,
    train,
)
from sensitune.tuner import SptConfig, initialize_down


def run(folder: RunFolder, *, reporter: Reporter | None = None) -> TrainingResult:
    """Every stage up to the trained adapter; what is there already is not computed again.

    Args:
        folder: Where the run lives.
        reporter: Is told where it stands.

    Returns:
        The training's result.
    """
    if needs_sensitivity(folder.config):
        run_sensitivity(folder, reporter=reporter)
    run_allocate(folder, reporter=reporter)
    return run_train(folder, reporter=reporter)


def run_sensitivity(folder: RunFolder, *, reporter: Reporter | None = None) -> Sensitivity:
    """First stage: score every parameter on the training split's first batches; writes ``sensitivity.safetensors``.

    Args:
        folder: Where the run lives.
        reporter: Is told where it stands.

    Returns:
        The sensitivity, new or from the file.
    """
    if folder.sensitivity.exists():
        return Sensitivity.load(folder.sensitivity)
    reporter = reporter or Silent()
    reporter.stage("Scoring every parameter")
    config = folder.config
    settings = config.sensitivity
    data = build_data(config)
    backbone = build_backbone(config, data.num_classes, drop_path=settings.drop_path)
    backbone.model.to(resolve_device(config.device))
    images, transform = data.dataset["train"], build_transform(config, backbone)
    num_batches = min(settings.num_batches, math.ceil(len(images) / settings.batch_size))
    first = partial(batches, images, transform, batch_size=settings.batch_size, num_batches=num_batches)
    if settings.head == "probe":
        fit_head(backbone.model, first())
    sensitivity = estimate_sensitivity(
        backbone.model,
        first(),
        num_batches=num_batches,
        criterion=criterion_of(config),
        sites=METHODS[scoring_method(config)].outline(backbone.model),
        micro_batch_size=settings.micro_batch_size,
        keep_gradients=config.needs_gradients,
        dropout=settings.drop_path > 0,
        seed=config.seed,
        progress=reporter.step,
    )
    sensitivity.save(folder.sensitivity)
    return sensitivity


def run_allocate(
    folder: RunFolder, *, sensitivity: Sensitivity | None = None, reporter: Reporter | None = None
) -> Allocation:
    """Second stage: decide what is tuned; writes ``allocation.safetensors``.

    Args:
        folder: Where the run lives.
        sensitivity: The scores, where another run has estimated them; None takes the run's own.
        reporter: Is told where it stands.

    Returns:
        The allocation, new or from the file.

    Raises:
        RunFolderError: If the method needs the first stage and it has not run.
    """
    if folder.allocation.exists():
        return Allocation.load(folder.allocation)
    (reporter or Silent()).stage("Deciding what is tuned")
    method = METHODS[folder.config.method]
    if needs_sensitivity(folder.config) and sensitivity is None:
        _require(folder, folder.sensitivity, "sensitivity --output")
        sensitivity = Sensitivity.load(folder.sensitivity)
    if sensitivity is not None:
        outline = sensitivity.outline
    else:
        outline = method.outline(build_backbone(folder.config, build_data(folder.config).num_classes).model)
    allocation = method.place(folder.config, outline, sensitivity)
    if sensitivity is not None and folder.config.lora_start == "gradient":
        directions = lora_directions(sensitivity, allocation)
        with atomic_write(folder.lora_start) as temporary:
            save_file({site: rows.contiguous() for site, rows in directions.items()}, temporary)
    allocation.save(folder.allocation)
    return allocation


def run_train(folder: RunFolder, *, reporter: Reporter | None = None) -> TrainingResult:
    """Third stage: train; writes ``adapter/``, ``adapter_chosen/``, ``metrics.jsonl`` and ``training.json``.

    An interrupted training goes on from its last epoch.

    Args:
        folder: Where the run lives.
        reporter: Is told where it stands.

    Returns:
        The result, new or from the files.

    Raises:
        RunFolderError: If the second stage has not run.
    """
    finished = read_result(folder.path)
    if finished is not None:
        return finished
    _require(folder, folder.allocation, "allocate")
    reporter = reporter or Silent()
    config = folder.config
    allocation = Allocation.load(folder.allocation)
    reporter.stage(f"Training {allocation.trainable_params:,} parameters and the head")
    data = build_data(config)
    backbone = build_backbone(config, data.num_classes, drop_path=config.recipe.drop_path)
    torch.manual_seed(config.seed)
    tuner = SptConfig.from_allocation(allocation, dropout=config.recipe.dropout, drop_path=config.recipe.drop_path)
    tuned = get_peft_model(backbone.model, tuner)
    if config.lora_start == "gradient":
        initialize_down(tuned, load_file(folder.lora_start))
    return train(
        tuned,
        data,
        config.recipe,
        folder.path,
        transform=build_transform(config, backbone),
        manifest=build_manifest(config, backbone, data, allocation),
        device=config.device,
        num_workers=config.num_workers,
        seed=config.seed,
        progress=lambda progress: report_training(reporter, progress),
    )


def run_evaluate(
    folder: RunFolder,
    *,
    split: str = "test",
    weights: Literal["last", "chosen"] = "last",
    reporter: Reporter | None = None,
) -> Evaluation:
    """Evaluate the saved adapter once more, from its folder and the base alone; writes ``evaluation.json``.

    Args:
        folder: Where the run lives.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        weights: Those of the last epoch, or of the epoch the validation split chose.
        reporter: Is told where it stands.

    Returns:
        The evaluation.

    Raises:
        RunFolderError: If the adapter has not been trained.
        DataError: If the data has no such split.
    """
    adapter = folder.training.adapter if weights == "last" else folder.training.chosen_adapter
    _require(folder, adapter, "train")
    reporter = reporter or Silent()
    reporter.stage(f"Evaluating on the {split} split")
    config = folder.config
    data = build_data(replace(config, test=True))
    if split not in data.dataset:
        raise DataError(f"The data has no split {split!r}. It has: {', '.join(data.dataset)}.")
    model, manifest = load_tuned(adapter, checkpoint=config.checkpoint)
    found = evaluate(
        model,
        data.dataset[split],
        manifest.transform,
        batch_size=config.recipe.batch_size,
        device=config.device,
        precision=config.recipe.precision,
        num_workers=config.num_workers,
        progress=reporter.step,
    )
    values = {"split": split, "weights": weights, "accuracy": found.accuracy, "loss": found.loss}
    with atomic_write(folder.evaluation) as temporary:
        temporary.write_text(json.dumps(values | {"num_images": found.num_images}, indent=2) + "\n", encoding="utf-8")
    return found


def _require(folder: RunFolder, path: Path, stage: str) -> None:
    if not path.exists():
        raise RunFolderError(
            f"{folder.path} has no {path.name} yet. Run the stage before: `sensitune {stage} {folder.path}`."
        )
