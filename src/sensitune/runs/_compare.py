"""Several methods on the same model, images, scores and budget."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sensitune._files import atomic_write
from sensitune.errors import ArgumentError
from sensitune.runs._config import BUDGETED_METHODS, SPT_METHODS, Method, RunConfig
from sensitune.runs._folder import RunFolder
from sensitune.runs._ingredients import Ingredients
from sensitune.runs._methods import METHODS, criterion_of, needs_sensitivity, scoring_method
from sensitune.runs._presets import DEFAULT_PRESETS, PresetName, with_preset
from sensitune.runs._reporter import Reporter, Silent
from sensitune.runs._run import Run

DEFAULT_METHODS: tuple[Method, ...] = ("head", "lora", "spt-lora", "sparse")


def compare(
    config: RunConfig,
    path: str | os.PathLike[str],
    *,
    methods: Sequence[Method] = DEFAULT_METHODS,
    uniform_rank: int | None = None,
    preset: PresetName | None = None,
    reporter: Reporter | None = None,
) -> list[Run]:
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
        One run per method, trained and tested.

    Raises:
        ArgumentError: If a method is named twice, or none is.
    """
    if not methods or len(set(methods)) < len(methods):
        named = ", ".join(methods) or "none"
        raise ArgumentError(f"`methods` must name at least one method, and each once. Got {named}.")
    reporter = reporter or Silent()
    root = Path(path)
    ingredients = Ingredients(config)

    def start(settings: RunConfig) -> Run:
        folder = RunFolder.open(root / settings.method, settings)
        return Run(folder, ingredients=ingredients, reporter=reporter)

    uniform = replace(config, method="lora", budget=None, tau=None, rank=uniform_rank or config.rank)
    budget = start(uniform).allocation().trainable_params if config.budget is None else config.budget
    budgeted = replace(config, method="spt-lora", budget=budget, tau=None)
    compared = []
    for method in methods:
        settings = replace(budgeted if method in BUDGETED_METHODS else uniform, method=method)
        if method in SPT_METHODS and (chosen := preset or DEFAULT_PRESETS.get(method)):
            settings = with_preset(settings, chosen)
        run = start(settings)
        reporter.stage(METHODS[method].label)
        _share_sensitivity(run.folder, root)
        run.train()
        compared.append(run)
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
