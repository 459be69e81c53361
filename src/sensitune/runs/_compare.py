"""Several methods on the same model, images, scores and budget."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sensitune._files import atomic_write
from sensitune.allocation import Allocation
from sensitune.errors import ArgumentError
from sensitune.runs._config import BUDGETED_METHODS, SPT_METHODS, Method, RunConfig
from sensitune.runs._folder import RunFolder
from sensitune.runs._methods import METHODS, criterion_of, needs_sensitivity, scoring_method
from sensitune.runs._presets import DEFAULT_PRESETS, PresetName, with_preset
from sensitune.runs._reporter import Reporter, Silent
from sensitune.runs._stages import run, run_allocate
from sensitune.training import TrainingResult

DEFAULT_METHODS: tuple[Method, ...] = ("head", "lora", "spt-lora", "sparse")


@dataclass(frozen=True)
class ComparedRun:
    """One method's run in a comparison.

    Attributes:
        label: What a reader calls the method.
        folder: Where the run lives.
        allocation: What it trained.
        result: What it reached.
    """

    label: str
    folder: RunFolder
    allocation: Allocation
    result: TrainingResult


def compare(
    config: RunConfig,
    path: str | os.PathLike[str],
    *,
    methods: Sequence[Method] = DEFAULT_METHODS,
    uniform_rank: int | None = None,
    preset: PresetName | None = None,
    reporter: Reporter | None = None,
) -> list[ComparedRun]:
    """Run several methods at the cost of the uniform LoRA, each in a run folder of its own under `path`.

    Every method gets the same model, head, images, order of images and recipe; the scores are estimated once. A
    comparison that was interrupted goes on where it stopped.

    Args:
        config: What the runs share. Without a budget, the cost of the uniform LoRA is everybody's budget.
        path: Where the run folders go, one per method and named after it.
        methods: The methods, in the order of the result.
        uniform_rank: Rank of the uniform methods; None is the config's rank.
        preset: Settings of SPT's methods alone, over those of the config; None is each method's default, which is
            best for spt-lora and spt-adapter, and the config as it stands for the others.
        reporter: Is told where it stands.

    Returns:
        One run per method.

    Raises:
        ArgumentError: If a method is named twice, or none is.
    """
    if not methods or len(set(methods)) < len(methods):
        named = ", ".join(methods) or "none"
        raise ArgumentError(f"`methods` must name at least one method, and each once. Got {named}.")
    reporter = reporter or Silent()
    root = Path(path)
    uniform = replace(config, method="lora", budget=None, tau=None, rank=uniform_rank or config.rank)
    budget = config.budget
    if budget is None:
        budget = run_allocate(RunFolder.open(root / "lora", uniform), reporter=reporter).trainable_params
    budgeted = replace(config, method="spt-lora", budget=budget, tau=None)
    compared = []
    for method in methods:
        settings = replace(budgeted if method in BUDGETED_METHODS else uniform, method=method)
        if method in SPT_METHODS and (chosen := preset or DEFAULT_PRESETS.get(method)):
            settings = with_preset(settings, chosen)
        folder = RunFolder.open(root / method, settings)
        reporter.stage(METHODS[method].label)
        _share_sensitivity(folder, root)
        result = run(folder, reporter=reporter)
        compared.append(ComparedRun(METHODS[method].label, folder, Allocation.load(folder.allocation), result))
    return compared


def _share_sensitivity(folder: RunFolder, root: Path) -> None:
    """Take the scores that another run of the comparison has estimated."""
    if folder.sensitivity.exists() or not needs_sensitivity(folder.config):
        return
    for other in sorted(root.glob("*/sensitivity.safetensors")):
        if _has_what_it_takes(RunFolder.load(other.parent).config, folder.config):
            with atomic_write(folder.sensitivity) as temporary:
                shutil.copyfile(other, temporary)
            return


def _has_what_it_takes(estimated: RunConfig, wanted: RunConfig) -> bool:
    """Whether one run's scores do for another that differs in its method alone."""
    alike = criterion_of(estimated) == criterion_of(wanted) and scoring_method(estimated) == scoring_method(wanted)
    return alike and (estimated.needs_gradients or not wanted.needs_gradients)
