"""One run, stage by stage; each stage is taken from the run's folder, or computed and written to it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from sensitune._processes import Processes
from sensitune.allocation import Allocation, compute_lora_start
from sensitune.errors import ArgumentError, DataError, RunFolderError
from sensitune.runs._choice import settle
from sensitune.runs._config import RunConfig
from sensitune.runs._evaluation import RecordedEvaluation, Weights, show_on_card
from sensitune.runs._folder import RunFolder
from sensitune.runs._ingredients import Ingredients
from sensitune.runs._launch import check_processes
from sensitune.runs._lora_start import save_lora_start
from sensitune.runs._manifest import manifest_of
from sensitune.runs._reporter import Reporter, Silent, report_training
from sensitune.runs._scoring import estimate
from sensitune.runs._settings import DeviceName
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline
from sensitune.training import (
    AdapterManifest,
    AdapterOrigin,
    Answers,
    Evaluation,
    TrainingResult,
    check_precision,
    evaluate,
    load_tuned,
    read_result,
    train,
)


class Run:
    """One run: its settings, its folder, and its stages in order.

    `sensitivity`, `allocation` and `train` take what they need from the stages before, and what a stage has found is
    read or computed once. Images and backbone are loaded once, when a stage first needs them; each stage that changes
    the model gets one of its own. Make a run with `open` or `load`.

    Where torch.distributed is initialised, its processes work together, and each calls the same methods: the result is
    that of one process, the first alone writes, and all return the same.

    Args:
        folder: Where it lives.
        ingredients: Images and backbone of its settings, where another run has them already; None makes them.
        scores: Folder in which runs that take the same scores share them; None keeps them in the run's own.
        reporter: Is told where it stands.

    Raises:
        ArgumentError: If the ingredients are those of other settings.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        ingredients: Ingredients | None = None,
        scores: Path | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        config = folder.config
        if ingredients is not None and not ingredients.suit(config):
            raise ArgumentError(
                "`ingredients` must be made of the run's own backbone, data, head start and seed. Leave them out."
            )
        self.folder = folder
        self.reporter = reporter or Silent()
        self.ingredients = ingredients or Ingredients.of(config)
        # Candidates share their scores, and the chosen one's run finds them there.
        self.scores = folder.path / "scores" if scores is None and folder.config.allocation.method == "auto" else scores
        self._settled: RunConfig | None = None
        self._sensitivity: Sensitivity | None = None
        self._allocation: Allocation | None = None
        self._placed: Allocation | None = None
        self._origin: AdapterOrigin | None = None
        self._result: TrainingResult | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: RunConfig,
        *,
        ingredients: Ingredients | None = None,
        scores: Path | None = None,
        reporter: Reporter | None = None,
    ) -> Run:
        """Start a run in a folder, or go on with one of the same settings.

        Before anything is written, everything is checked that can be known before anything is computed: see `check`.

        Args:
            path: The folder; made if it is missing.
            config: The settings. The group ``compute`` may differ from the recorded one.
            ingredients: As in the class.
            scores: As in the class.
            reporter: As in the class.

        Returns:
            The run.

        Raises:
            RunFolderError: If the folder holds another run or something else, or another process works there.
            SensituneError: What `check` raises.
        """
        folder = RunFolder(Path(path), config)
        run = cls(folder, ingredients=ingredients, scores=scores, reporter=reporter)
        processes = Processes.found()
        with folder.writing():
            check_processes(folder.path, config.to_dict())
            known = processes.first(folder.is_of_this_run)
            if processes.first(run._finished) is None:
                processes.together(run.check)
                run.ingredients.check_alike()
            if not known:
                processes.first(folder.write_settings)
        return run

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
        folder = RunFolder.load(path, device=device)
        check_processes(folder.path, folder.config.to_dict())
        return cls(folder, reporter=reporter)

    @property
    def config(self) -> RunConfig:
        """The settings."""
        return self.folder.config

    @property
    def settled(self) -> RunConfig:
        """The settings its stages follow: its own; of the method auto those it has chosen, and chooses if need be."""
        if self._settled is None:
            self._settled = settle(self)
        return self._settled

    def check(self) -> None:
        """Make sure of all that can be known before anything is computed.

        The device and its arithmetic, the images, the backbone with its weights, that it takes images of the size, and
        that what is to be tuned and spent has room in it.

        Raises:
            SensituneError: What is wrong, in one sentence.
        """
        config = self.config
        check_precision(config.recipe.precision, config.compute.device)
        scored_with = config.sensitivity.drop_path if config.needs_scores else 0.0
        self.ingredients.check(drop_path=max(config.recipe.drop_path, scored_with))
        if not self.folder.allocation.exists():
            self._placed = config.method.check(self)

    def outline(self) -> ModelOutline:
        """How the run's method sees the backbone."""
        config = self.settled
        split_fused = config.scoring.sensitivity.split_fused if config.needs_scores else config.method.split_fused
        return self.ingredients.outline(split_fused=split_fused)

    def sensitivity(self) -> Sensitivity:
        """First stage: score every parameter on the training split's first batches; ``sensitivity.safetensors``.

        Returns:
            The scores, which stay in the file and are mapped into memory where they are used.
        """
        if self._sensitivity is None:
            path = Processes.found().first(self._known_scores) or self._score()
            self._sensitivity = Sensitivity.load(path, lazy=True)
        return self._sensitivity

    def _score(self) -> Path:
        self.reporter.stage("Scoring every parameter")
        scoring, device = self.settled.scoring, self.config.compute.device
        path = self.folder.sensitivity if self.scores is None else self.scores / scoring.file_name
        with self.folder.writing():
            found = estimate(scoring, self.ingredients, device=device, progress=self.reporter.step)
            Processes.found().first(lambda: found.save(path))
        return path

    def known_sensitivity(self) -> Sensitivity | None:
        """The scores if they are there; nothing is computed."""
        return None if Processes.found().first(self._known_scores) is None else self.sensitivity()

    def _known_scores(self) -> Path | None:
        if self.scores is None:
            paths = [self.folder.sensitivity]
        else:
            paths = [self.scores / each.file_name for each in self.settled.scoring.sufficient()]
        return next((path for path in paths if path.exists()), None)

    def allocation(self) -> Allocation | None:
        """Second stage: decide what is tuned; ``allocation.safetensors``.

        Returns:
            The allocation; None if the method places nothing.
        """
        if self._allocation is None:
            self._allocation = Processes.found().first(self._known_allocation)
        if self._allocation is None:
            with self.folder.writing():
                sensitivity = self.sensitivity() if self.settled.needs_scores else None
                self.reporter.stage("Deciding what is tuned")
                self._allocation = Processes.found().first(lambda: self._allocate(sensitivity))
        return self._allocation

    def _known_allocation(self) -> Allocation | None:
        return Allocation.load(self.folder.allocation) if self.folder.allocation.exists() else None

    def _allocate(self, sensitivity: Sensitivity | None) -> Allocation | None:
        config, method, settings = self.settled, self.settled.method, self.settled.allocation
        if self._placed is not None:
            allocation: Allocation | None = self._placed
        else:
            outline = self.outline() if sensitivity is None else sensitivity.outline
            allocation = method.allocate(settings, outline, sensitivity, seed=config.seed)
        if allocation is None:
            return None
        if sensitivity is not None and settings.lora_start == "gradient":
            save_lora_start(self.folder.lora_start, compute_lora_start(sensitivity, allocation))
        allocation.save(self.folder.allocation)
        return allocation

    def train(self) -> TrainingResult:
        """Third stage: train; ``adapter/``, ``adapter_chosen/``, ``metrics.jsonl`` and ``training.json``.

        An interrupted training goes on from its last epoch.

        Returns:
            The training's numbers.
        """
        if self._result is None:
            processes = Processes.found()
            finished = processes.first(self._finished)
            if finished is None:
                with self.folder.writing():
                    finished = processes.first(self._finished) or self._train()
            processes.first(self.folder.remove_checkpoints)
            self._result = finished
        return self._result

    def _finished(self) -> TrainingResult | None:
        return read_result(self.folder.path)

    def _train(self) -> TrainingResult:
        self.allocation()
        config = self.settled
        torch.manual_seed(config.seed)
        tuned = config.method.make_tuned(self)
        manifest = manifest_of(self, tuned)
        self._origin = manifest.origin
        self.reporter.stage(f"Training {manifest.origin.trainable_params:,} parameters and the head")
        return train(
            tuned,
            self.ingredients.data,
            config.recipe,
            self.folder.path,
            transform=self.ingredients.transform,
            manifest=manifest,
            device=config.compute.device,
            num_workers=config.compute.num_workers,
            sharded=config.compute.sharded,
            seed=config.seed,
            progress=lambda progress: report_training(self.reporter, progress),
        )

    def origin(self) -> AdapterOrigin:
        """What the trained adapter says of the run: its method, its seed, its data and what it cost."""
        if self._origin is None:
            self._origin = AdapterManifest.load(self.folder.training.adapter).origin
        return self._origin

    def evaluate(self, *, split: str = "test", weights: Weights = "last") -> Evaluation:
        """Evaluate the saved adapter once more, from its folder on a fresh backbone; ``evaluation.json``.

        The accuracy on the test split goes into the adapter's model card too: a run that left that split alone while
        it trained had none to say.

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
        if not Processes.found().first(adapter.exists):
            raise RunFolderError(
                f"{self.folder.path} has no {adapter.name} yet. Train it first: `sensitune train {self.folder.path}`."
            )
        config, splits = self.config, self.ingredients.all_data.dataset
        check_precision(config.recipe.precision, config.compute.device)
        if split not in splits:
            raise DataError(f"The data has no split {split!r}. It has: {', '.join(splits)}.")
        self.reporter.stage(f"Evaluating on the {split} split")
        with self.folder.writing():
            return self._evaluate(adapter, split, weights)

    def _evaluate(self, adapter: Path, split: str, weights: Weights) -> Evaluation:
        config = self.config
        model, manifest = load_tuned(adapter, backbone=self.ingredients.fresh_backbone())
        found = evaluate(
            model,
            self.ingredients.all_data.dataset[split],
            manifest.transform,
            batch_size=config.recipe.batch_size,
            device=config.compute.device,
            precision=config.recipe.precision,
            num_workers=config.compute.num_workers,
            progress=self.reporter.step,
        )
        Processes.found().first(lambda: self._record(found, split, weights))
        return found

    def _record(self, found: Evaluation, split: str, weights: Weights) -> None:
        if (split, weights) == ("test", "last"):
            num_classes = self.ingredients.all_data.num_classes
            Answers.of(found, num_classes=num_classes).save(self.folder.training.answers)
        if split == "test":
            show_on_card(self.folder.path, self.config.recipe, found.accuracy, weights)
        self.folder.write_evaluation(RecordedEvaluation.of(found, split=split, weights=weights))
