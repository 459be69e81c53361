"""Methods that place modules, vectors and single values in an `Allocation`, and tune what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft import PeftModel, get_peft_model

from sensitune.allocation import (
    Allocation,
    StructuredType,
    allocate,
    check_budget,
    check_rank,
    matrices_alone,
    random_allocation,
    random_structured_allocation,
    uniform_allocation,
)
from sensitune.runs._lora_start import load_lora_start
from sensitune.runs.methods._method import DEFAULT_BUDGET, Method
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline
from sensitune.tuner import SptConfig, apply_lora_start

if TYPE_CHECKING:
    from sensitune.runs._run import Run
    from sensitune.runs._settings import AllocationSettings

Place = Callable[["AllocationSettings", ModelOutline, Sensitivity | None, int], Allocation]
"""(settings, outline, scores or None, seed) -> allocation."""
Fits = Callable[["AllocationSettings", ModelOutline], None]


@dataclass(frozen=True, kw_only=True)
class PlacedMethod(Method):
    """A method that is known by where it puts its parameters.

    Attributes:
        place: Its rule.
        fits: Refuses what a rule that follows scores would refuse whatever the scores.
    """

    place: Place
    fits: Fits = lambda settings, outline: None

    def allocate(
        self, settings: AllocationSettings, outline: ModelOutline, sensitivity: Sensitivity | None, *, seed: int
    ) -> Allocation:
        """Follow the rule."""
        return self.place(settings, outline, sensitivity, seed)

    def check(self, run: Run) -> Allocation | None:
        """Refuse what has no room in the model."""
        settings, outline = run.config.allocation, run.outline()
        if not self.follows_scores:
            return self.place(settings, outline, None, run.config.seed)
        self.fits(settings, outline)
        return None

    def make_tuned(self, run: Run) -> PeftModel:
        """What the run's allocation says; its LoRAs start along the gradient if the settings say so."""
        allocation, recipe = run.allocation(), run.settled.recipe
        assert allocation is not None
        config = SptConfig.from_allocation(allocation, dropout=recipe.dropout, drop_path=recipe.drop_path)
        tuned = get_peft_model(run.ingredients.fresh_backbone(drop_path=recipe.drop_path).model, config)
        assert isinstance(tuned, PeftModel)
        if run.settled.allocation.lora_start == "gradient":
            apply_lora_start(tuned, load_lora_start(run.folder.lora_start))
        return tuned


def within_what_spt_can_use(structured: StructuredType | None) -> Fits:
    """What `by_sensitivity` would find out after the scores."""

    def fits(settings: AllocationSettings, outline: ModelOutline) -> None:
        ranked = matrices_alone(outline) if settings.servable else outline
        check_budget(ranked, **_rule(settings, structured))

    return fits


def within_the_rule(check: Callable[[ModelOutline, int | str], None]) -> Fits:
    """What a sparse rule of its own would find out after the scores."""

    def fits(settings: AllocationSettings, outline: ModelOutline) -> None:
        check(outline, _budget(settings))

    return fits


def by_sensitivity(structured: StructuredType | None) -> Place:
    """SPT's rule; without a structured module it is purely sparse, vectors included."""

    def place(
        settings: AllocationSettings, outline: ModelOutline, sensitivity: Sensitivity | None, seed: int
    ) -> Allocation:
        assert sensitivity is not None
        allocation: Allocation = allocate(sensitivity, **_rule(settings, structured), servable=settings.servable)
        return allocation

    return place


def by_rule(rule: Callable[..., Allocation]) -> Place:
    """A sparse rule of its own."""

    def place(
        settings: AllocationSettings, outline: ModelOutline, sensitivity: Sensitivity | None, seed: int
    ) -> Allocation:
        return rule(sensitivity, budget=_budget(settings))

    return place


def at_random(
    settings: AllocationSettings, outline: ModelOutline, sensitivity: Sensitivity | None, seed: int
) -> Allocation:
    """SPT's rule on a random ranking."""
    check_rank(outline.sites, "lora", settings.rank)
    return random_allocation(
        outline,
        budget=_budget(settings),
        rank=settings.rank,
        alpha=settings.alpha,
        beta=settings.beta,
        seed=seed,
    )


def scattered(
    settings: AllocationSettings, outline: ModelOutline, sensitivity: Sensitivity | None, seed: int
) -> Allocation:
    """Single values at random."""
    return random_allocation(outline, budget=_budget(settings), structured=None, whole_vectors=False, seed=seed)


def on_random_matrices(
    settings: AllocationSettings, outline: ModelOutline, sensitivity: Sensitivity | None, seed: int
) -> Allocation:
    """LoRAs on matrices drawn at random."""
    check_rank(outline.sites, "lora", settings.rank)
    return random_structured_allocation(outline, budget=_budget(settings), rank=settings.rank, seed=seed)


def everywhere(
    structured: StructuredType | None,
    *,
    operations: tuple[str, ...] | None = None,
    vectors: bool = False,
    train_tokens: bool = True,
) -> Place:
    """The same on every site of a kind."""

    def place(
        settings: AllocationSettings, outline: ModelOutline, sensitivity: Sensitivity | None, seed: int
    ) -> Allocation:
        check_rank(outline.sites, structured, settings.rank)
        return uniform_allocation(
            outline,
            structured=structured,
            rank=settings.rank,
            operations=operations,
            vectors=vectors,
            train_tokens=train_tokens,
        )

    return place


def _rule(settings: AllocationSettings, structured: StructuredType | None) -> dict[str, Any]:
    """SPT's rule as `allocate` takes it, and `check_budget` before there are scores."""
    return {
        "budget": None if settings.tau is not None else _budget(settings),
        "tau": settings.tau,
        "structured": structured,
        "rank": settings.rank,
        "alpha": settings.alpha,
        "beta": settings.beta,
        "whole_vectors": structured is not None,
    }


def _budget(settings: AllocationSettings) -> int | str:
    return DEFAULT_BUDGET if settings.budget is None else settings.budget
