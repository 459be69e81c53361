"""One run, stage by stage; each stage is taken from the run's folder, or computed and written to it."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from sensitune._files import atomic_write
from sensitune.allocation import Allocation, compute_lora_start
from sensitune.data import batches
from sensitune.errors import DataError, RunFolderError
from sensitune.runs._config import DeviceName, RunConfig
from sensitune.runs._folder import RunFolder
from sensitune.runs._ingredients import Ingredients
from sensitune.runs._methods import METHODS, criterion_of, needs_sensitivity, scoring_method
from sensitune.runs._reporter import Reporter, Silent, report_training
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.training import (
    AdapterManifest,
    AdapterOrigin,
    Evaluation,
    TrainingResult,
    evaluate,
    fit_head,
    load_tuned,
    read_result,
    resolve_device,
    train,
)
from sensitune.tuner import SptConfig, apply_lora_start


class Run:
    """One run: its settings, its folder, and its stages in order.

    `sensitivity`, `allocation` and `train` take what they need from the stages before, and what a stage has found is
    read or computed once. Images and backbone are loaded once, when a stage first needs them; each stage that changes
    the model gets one of its own. Make a run with `open` or `load`.

    Args:
        folder: Where it lives.
        ingredients: Images and backbone; None makes those of the settings.
        reporter: Is told where it stands.
    """

    def __init__(
        self, folder: RunFolder, *, ingredients: Ingredients | None = None, reporter: Reporter | None = None
    ) -> None:
        self.folder = folder
        self.reporter = reporter or Silent()
        self.ingredients = ingredients or Ingredients(folder.config)
        self._sensitivity: Sensitivity | None = None
        self._allocation: Allocation | None = None
        self._result: TrainingResult | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], config: RunConfig, *, reporter: Reporter | None = None) -> Run:
        """Start a run in a folder, or go on with one of the same settings.

        Args:
            path: The folder; made if it is missing.
            config: The settings. ``device`` and ``num_workers`` may differ from the recorded ones.
            reporter: Is told where it stands.

        Returns:
            The run.
        """
        return cls(RunFolder.open(path, config), reporter=reporter)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, device: DeviceName | None = None, reporter: Reporter | None = None
    ) -> Run:
        """Come back to a run with its recorded settings.

        Args:
            path: Its folder.
            device: Where it goes on; None is the recorded setting.
            reporter: Is told where it stands.

        Returns:
            The run.
        """
        return cls(RunFolder.load(path, device=device), reporter=reporter)

    @property
    def config(self) -> RunConfig:
        """The settings."""
        return self.folder.config

    def sensitivity(self) -> Sensitivity:
        """First stage: score every parameter on the training split's first batches; ``sensitivity.safetensors``.

        Returns:
            The scores, which stay in the file and are mapped into memory where they are used.
        """
        if self._sensitivity is None:
            if not self.folder.sensitivity.exists():
                self._estimate().save(self.folder.sensitivity)
            self._sensitivity = Sensitivity.load(self.folder.sensitivity, lazy=True)
        return self._sensitivity

    def known_sensitivity(self) -> Sensitivity | None:
        """The scores if they are there; nothing is computed."""
        known = self._sensitivity is not None or self.folder.sensitivity.exists()
        return self.sensitivity() if known else None

    def _estimate(self) -> Sensitivity:
        self.reporter.stage("Scoring every parameter")
        config, settings = self.config, self.config.sensitivity
        model = self.ingredients.fresh_backbone(drop_path=settings.drop_path).model
        model.to(resolve_device(config.device))
        images = self.ingredients.data.dataset["train"]
        num_batches = min(settings.num_batches, math.ceil(len(images) / settings.batch_size))
        first = partial(
            batches, images, self.ingredients.transform, batch_size=settings.batch_size, num_batches=num_batches
        )
        if settings.head == "probe":
            fit_head(model, first())
        return estimate_sensitivity(
            model,
            first(),
            num_batches=num_batches,
            criterion=criterion_of(config),
            sites=METHODS[scoring_method(config)].outline(model),
            micro_batch_size=settings.micro_batch_size,
            keep_gradients=config.needs_gradients,
            dropout=settings.drop_path > 0,
            seed=config.seed,
            progress=self.reporter.step,
        )

    def allocation(self, *, sensitivity: Sensitivity | None = None) -> Allocation:
        """Second stage: decide what is tuned; ``allocation.safetensors``.

        Args:
            sensitivity: The scores, where another run has estimated them; None takes the run's own.

        Returns:
            The allocation.
        """
        if self._allocation is None:
            if self.folder.allocation.exists():
                self._allocation = Allocation.load(self.folder.allocation)
            else:
                self._allocation = self._allocate(sensitivity)
        return self._allocation

    def _allocate(self, sensitivity: Sensitivity | None) -> Allocation:
        config, method = self.config, METHODS[self.config.method]
        if sensitivity is None and needs_sensitivity(config):
            sensitivity = self.sensitivity()
        self.reporter.stage("Deciding what is tuned")
        outline = method.outline(self.ingredients.backbone.model) if sensitivity is None else sensitivity.outline
        allocation = method.place(config, outline, sensitivity)
        if sensitivity is not None and config.lora_start == "gradient":
            start = compute_lora_start(sensitivity, allocation)
            with atomic_write(self.folder.lora_start) as temporary:
                save_file({site: rows.contiguous() for site, rows in start.items()}, temporary)
        allocation.save(self.folder.allocation)
        return allocation

    def train(self) -> TrainingResult:
        """Third stage: train; ``adapter/``, ``adapter_chosen/``, ``metrics.jsonl`` and ``training.json``.

        An interrupted training goes on from its last epoch.

        Returns:
            The training's numbers.
        """
        if self._result is None:
            self._result = read_result(self.folder.path) or self._train()
        return self._result

    def _train(self) -> TrainingResult:
        allocation, config = self.allocation(), self.config
        self.reporter.stage(f"Training {allocation.trainable_params:,} parameters and the head")
        backbone = self.ingredients.fresh_backbone(drop_path=config.recipe.drop_path)
        torch.manual_seed(config.seed)
        tuner = SptConfig.from_allocation(allocation, dropout=config.recipe.dropout, drop_path=config.recipe.drop_path)
        tuned = get_peft_model(backbone.model, tuner)
        if config.lora_start == "gradient":
            apply_lora_start(tuned, load_file(self.folder.lora_start))
        return train(
            tuned,
            self.ingredients.data,
            config.recipe,
            self.folder.path,
            transform=self.ingredients.transform,
            manifest=self._manifest(allocation),
            device=config.device,
            num_workers=config.num_workers,
            seed=config.seed,
            progress=lambda progress: report_training(self.reporter, progress),
        )

    def _manifest(self, allocation: Allocation) -> AdapterManifest:
        """What the adapter folder says about itself, and nothing about this machine."""
        backbone, data = self.ingredients.backbone, self.ingredients.data
        spec = backbone.spec
        if spec.checkpoint is not None:
            spec = replace(spec, checkpoint=Path(spec.checkpoint).name)
        origin = AdapterOrigin.of(
            data,
            method=self.config.method,
            seed=self.config.seed,
            trainable_params=allocation.trainable_params,
            head_params=allocation.head_params,
        )
        return AdapterManifest(spec, backbone.weights_hash, data.class_names, self.ingredients.transform, origin)

    def evaluate(self, *, split: str = "test", weights: Literal["last", "chosen"] = "last") -> Evaluation:
        """Evaluate the saved adapter once more, from its folder on a fresh backbone; ``evaluation.json``.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.
            weights: Those of the last epoch, or of the epoch the validation split chose.

        Returns:
            The evaluation.

        Raises:
            RunFolderError: If the adapter has not been trained.
            DataError: If the data has no such split.
        """
        adapter = self.folder.training.adapter if weights == "last" else self.folder.training.chosen_adapter
        if not adapter.exists():
            raise RunFolderError(
                f"{self.folder.path} has no {adapter.name} yet. Train it first: `sensitune train {self.folder.path}`."
            )
        self.reporter.stage(f"Evaluating on the {split} split")
        config, splits = self.config, self.ingredients.all_data.dataset
        if split not in splits:
            raise DataError(f"The data has no split {split!r}. It has: {', '.join(splits)}.")
        model, manifest = load_tuned(adapter, backbone=self.ingredients.fresh_backbone())
        found = evaluate(
            model,
            splits[split],
            manifest.transform,
            batch_size=config.recipe.batch_size,
            device=config.device,
            precision=config.recipe.precision,
            num_workers=config.num_workers,
            progress=self.reporter.step,
        )
        values = {"split": split, "weights": weights, "accuracy": found.accuracy, "loss": found.loss}
        with atomic_write(self.folder.evaluation) as temporary:
            written = values | {"num_images": found.num_images}
            temporary.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        return found
