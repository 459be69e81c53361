"""Several methods on the same model, images, scores and budget."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final

from sensitune._lock import one_writer
from sensitune.errors import ArgumentError
from sensitune.runs._config import RunConfig
from sensitune.runs._ingredients import Ingredients
from sensitune.runs._presets import with_preset
from sensitune.runs._reporter import Reporter, Silent
from sensitune.runs._run import Run
from sensitune.runs._settings import AllocationSettings
from sensitune.runs.methods import METHODS, PresetName

_DEFAULT_METHODS: Final = ("head", "lora", "spt-lora", "sparse")


def compare(
    config: RunConfig,
    path: str | os.PathLike[str],
    *,
    methods: Sequence[str] = _DEFAULT_METHODS,
    uniform_rank: int | None = None,
    preset: PresetName | None = None,
    reporter: Reporter | None = None,
) -> list[Run]:
    """Run several methods at the cost of the uniform LoRA, each in a run folder of its own under `path`.

    Every method gets the same model, head, images, order of images and recipe; scores are estimated once for all that
    take the same, and lie in ``scores/``. A comparison that was interrupted goes on where it stopped.

    Args:
        config: What the runs share. Without a budget, the cost of the uniform LoRA is everybody's budget.
        path: Where the run folders go, one per method and named after it.
        methods: The methods, in the order of the result.
        uniform_rank: Rank of the methods that have no budget; None is the config's rank.
        preset: Settings of SPT's methods alone, over those of the config; None is each method's default, which is
            best for spt-lora and spt-adapter, and the config as it stands for the others.
        reporter: Is told where it stands.

    Returns:
        One run per method, trained and tested.

    Raises:
        ArgumentError: If a method is unknown or named twice, or none is.
    """
    if not methods or len(set(methods)) < len(methods):
        named = ", ".join(methods) or "none"
        raise ArgumentError(f"`methods` must name at least one method, and each once. Got {named}.")
    if unknown := [name for name in methods if name not in METHODS]:
        raise ArgumentError(f"`methods` must be among {', '.join(METHODS)}. Got {unknown[0]!r}.")
    reporter, root = reporter or Silent(), Path(path)
    ingredients = Ingredients.of(config)

    def start(allocation: AllocationSettings) -> Run:
        settings = replace(config, allocation=allocation)
        if chosen := preset if settings.method.presets and preset else settings.method.default_preset:
            settings = with_preset(settings, chosen)
        return Run.open(
            root / allocation.method, settings, ingredients=ingredients, scores=root / "scores", reporter=reporter
        )

    with comparing(root):
        return _compare(config, start, methods=methods, uniform_rank=uniform_rank, reporter=reporter)


def comparing(path: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """Be the only one who works in the folder of a comparison; see `sensitune.runs.RunFolder.writing`.

    Args:
        path: The folder.

    Returns:
        The context.
    """
    return one_writer(path, within=[*METHODS, "scores", "figures"])


def _compare(
    config: RunConfig,
    start: Callable[[AllocationSettings], Run],
    *,
    methods: Sequence[str],
    uniform_rank: int | None,
    reporter: Reporter,
) -> list[Run]:
    given = config.allocation
    uniform = replace(given, method="lora", budget=None, tau=None, rank=uniform_rank or given.rank, peft=None)
    budget = given.budget or _cost(start(uniform))
    compared = []
    for name in methods:
        if METHODS[name].spends_budget:
            settings = replace(given, method=name, budget=budget, tau=None, peft=None)
        else:
            settings = replace(uniform, method=name, peft=given.peft if name == "peft" else None)
        compared.append(start(settings))  # all are checked before the first is computed
    for run in compared:
        reporter.stage(run.config.method.label)
        run.train()
    return compared


def _cost(run: Run) -> int:
    allocation = run.allocation()
    assert allocation is not None
    return allocation.trainable_params
